/* Graphs and their nodes as records. */
#include <stdlib.h>

#include "graph.h"

bool nodes_have(const Nodes *nodes, const Node *node) {
    for (size_t i = 0; i < nodes->n; i++)
        if (nodes->items[i] == node)
            return true;
    return false;
}

void nodes_add(Nodes *nodes, Node *node) {
    if (nodes_have(nodes, node))
        return;
    nodes->items = realloc(nodes->items, (nodes->n + 1) * sizeof *nodes->items);
    if (!nodes->items)
        abort();
    nodes->items[nodes->n++] = node;
}

void nodes_remove(Nodes *nodes, const Node *node) {
    size_t kept = 0;
    for (size_t i = 0; i < nodes->n; i++)
        if (nodes->items[i] != node)
            nodes->items[kept++] = nodes->items[i];
    nodes->n = kept;
}

void nodes_end(Nodes *nodes) {
    free(nodes->items);
    *nodes = (Nodes){0};
}

Nodes nodes_copy(const Nodes *nodes) {
    return (Nodes){.items = claim_copy(nodes->items, nodes->n * sizeof *nodes->items), .n = nodes->n};
}

Graph *graph_find(CUgraph handle) {
    return object_find(handle, OBJECT_GRAPH);
}

Node *node_find(CUgraphNode handle) {
    return object_find(handle, OBJECT_NODE);
}

CUresult nodes_find(const CUgraphNode *handles, size_t n, const Graph *graph, Nodes *nodes) {
    *nodes = (Nodes){0};
    for (size_t i = 0; i < n; i++) {
        Node *node = handles ? node_find(handles[i]) : NULL;
        if (!node || node->graph != graph || nodes_have(nodes, node)) {
            nodes_end(nodes);
            return CUDA_ERROR_INVALID_VALUE;
        }
        nodes_add(nodes, node);
    }
    return CUDA_SUCCESS;
}

Graph *graph_new(void) {
    Graph *graph = claim(sizeof *graph);
    object_open(&graph->object, OBJECT_GRAPH, NULL);
    return graph;
}

Node *graph_add(Graph *graph, const Content *content, const Nodes *after) {
    Node *node = claim(sizeof *node);
    node->graph = graph;
    node->content = *content;
    node->after = nodes_copy(after);
    object_open(&node->object, OBJECT_NODE, NULL);
    nodes_add(&graph->nodes, node);
    return node;
}

static void node_free(Node *node) {
    object_close(&node->object);
    content_release(&node->content);
    nodes_end(&node->after);
    free(node);
}

void graph_remove(Node *node) {
    nodes_remove(&node->graph->nodes, node);
    for (size_t i = 0; i < node->graph->nodes.n; i++)
        nodes_remove(&node->graph->nodes.items[i]->after, node);
    node_free(node);
}

void graph_end(Graph *graph) {
    object_close(&graph->object);
    for (size_t i = 0; i < graph->nodes.n; i++)
        node_free(graph->nodes.items[i]);
    nodes_end(&graph->nodes);
    user_references_end(graph);
    free(graph);
}

static bool has_memory_nodes(const Graph *graph) {
    for (size_t i = 0; i < graph->nodes.n; i++) {
        const Content *content = &graph->nodes.items[i]->content;
        bool memory = content->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || content->type == CU_GRAPH_NODE_TYPE_MEM_FREE;
        if (memory || (content->child && has_memory_nodes(content->child)))
            return true;
    }
    return false;
}

/* Memory nodes own an address, which two graphs cannot both have. */
CUresult graph_clone(const Graph *graph, Graph **clone) {
    if (has_memory_nodes(graph))
        return CUDA_ERROR_NOT_SUPPORTED;
    *clone = graph_new();
    for (size_t i = 0; i < graph->nodes.n; i++) {
        const Node *node = graph->nodes.items[i];
        Content content = content_copy(&node->content);
        Nodes none = {0};
        graph_add(*clone, &content, &none)->origin = node->object.handle;
    }
    for (size_t i = 0; i < graph->nodes.n; i++)
        for (size_t j = 0; j < graph->nodes.items[i]->after.n; j++)
            for (size_t k = 0; k < graph->nodes.n; k++)
                if (graph->nodes.items[k] == graph->nodes.items[i]->after.items[j])
                    nodes_add(&(*clone)->nodes.items[i]->after, (*clone)->nodes.items[k]);
    user_references_copy(graph, *clone);
    return CUDA_SUCCESS;
}
