/* The calls that make graphs and ask about their shape. Lists are answered as the API has it: without room for them,
 * only their length is told; with more room than needed, the rest is NULL. */
#include <inttypes.h>
#include <stdio.h>

#include "graph.h"

CUresult emulated_cuGraphCreate(CUgraph *handle, unsigned int flags) {
    if (!handle || flags)
        return CUDA_ERROR_INVALID_VALUE;
    *handle = graph_new()->object.handle;
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphDestroy(CUgraph handle) {
    Graph *graph = graph_find(handle);
    if (!graph || graph->capturing)
        return graph ? CUDA_ERROR_ILLEGAL_STATE : CUDA_ERROR_INVALID_VALUE;
    graph_end(graph);
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphClone(CUgraph *clone_handle, CUgraph handle) {
    const Graph *graph = graph_find(handle);
    Graph *clone;
    if (!clone_handle || !graph)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = graph_clone(graph, &clone);
    if (!result)
        *clone_handle = clone->object.handle;
    return result;
}

CUresult emulated_cuGraphNodeFindInClone(CUgraphNode *found, CUgraphNode original, CUgraph handle) {
    const Graph *clone = graph_find(handle);
    for (size_t i = 0; found && clone && i < clone->nodes.n; i++)
        if (clone->nodes.items[i]->origin == original) {
            *found = clone->nodes.items[i]->object.handle;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult answer(const Nodes *nodes, CUgraphNode *list, size_t *n) {
    if (!n)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; list && i < *n; i++)
        list[i] = i < nodes->n ? nodes->items[i]->object.handle : NULL;
    if (!list || *n > nodes->n)
        *n = nodes->n;
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphGetNodes(CUgraph handle, CUgraphNode *list, size_t *n) {
    const Graph *graph = graph_find(handle);
    return graph ? answer(&graph->nodes, list, n) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuGraphGetRootNodes(CUgraph handle, CUgraphNode *list, size_t *n) {
    const Graph *graph = graph_find(handle);
    if (!graph)
        return CUDA_ERROR_INVALID_VALUE;
    Nodes roots = {0};
    for (size_t i = 0; i < graph->nodes.n; i++)
        if (!graph->nodes.items[i]->after.n)
            nodes_add(&roots, graph->nodes.items[i]);
    CUresult result = answer(&roots, list, n);
    nodes_end(&roots);
    return result;
}

static void no_edge_data(CUgraphEdgeData *data, const size_t *n) {
    for (size_t i = 0; data && n && i < *n; i++)
        data[i] = (CUgraphEdgeData){0};
}

CUresult emulated_cuGraphGetEdges_v2(CUgraph handle, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data,
                                     size_t *n) {
    const Graph *graph = graph_find(handle);
    if (!graph || !n || !from != !to)
        return CUDA_ERROR_INVALID_VALUE;
    size_t count = 0;
    for (size_t i = 0; i < graph->nodes.n; i++) {
        const Node *node = graph->nodes.items[i];
        for (size_t j = 0; j < node->after.n; j++, count++)
            if (from && count < *n) {
                from[count] = node->after.items[j]->object.handle;
                to[count] = node->object.handle;
            }
    }
    for (size_t i = count; from && i < *n; i++)
        from[i] = to[i] = NULL;
    if (!from || *n > count)
        *n = count;
    no_edge_data(data, n);
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphGetEdges(CUgraph handle, CUgraphNode *from, CUgraphNode *to, size_t *n) {
    return emulated_cuGraphGetEdges_v2(handle, from, to, NULL, n);
}

CUresult emulated_cuGraphNodeGetDependencies_v2(CUgraphNode handle, CUgraphNode *list, CUgraphEdgeData *data,
                                                size_t *n) {
    const Node *node = node_find(handle);
    CUresult result = node ? answer(&node->after, list, n) : CUDA_ERROR_INVALID_VALUE;
    no_edge_data(data, n);
    return result;
}

CUresult emulated_cuGraphNodeGetDependencies(CUgraphNode handle, CUgraphNode *list, size_t *n) {
    return emulated_cuGraphNodeGetDependencies_v2(handle, list, NULL, n);
}

CUresult emulated_cuGraphNodeGetDependentNodes_v2(CUgraphNode handle, CUgraphNode *list, CUgraphEdgeData *data,
                                                  size_t *n) {
    const Node *node = node_find(handle);
    if (!node)
        return CUDA_ERROR_INVALID_VALUE;
    Nodes dependent = {0};
    for (size_t i = 0; i < node->graph->nodes.n; i++)
        if (nodes_have(&node->graph->nodes.items[i]->after, node))
            nodes_add(&dependent, node->graph->nodes.items[i]);
    CUresult result = answer(&dependent, list, n);
    nodes_end(&dependent);
    no_edge_data(data, n);
    return result;
}

CUresult emulated_cuGraphNodeGetDependentNodes(CUgraphNode handle, CUgraphNode *list, size_t *n) {
    return emulated_cuGraphNodeGetDependentNodes_v2(handle, list, NULL, n);
}

static bool comes_after(const Node *node, const Node *other) {
    if (node == other)
        return true;
    for (size_t i = 0; i < node->after.n; i++)
        if (comes_after(node->after.items[i], other))
            return true;
    return false;
}

static CUresult change_edges(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, size_t n, bool add) {
    const Graph *graph = graph_find(handle);
    if (!graph || (n && (!from || !to)))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < n; i++) {
        Node *first = node_find(from[i]), *second = node_find(to[i]);
        if (!first || !second || first->graph != graph || second->graph != graph ||
            nodes_have(&second->after, first) == add)
            return CUDA_ERROR_INVALID_VALUE;
        if (add && comes_after(first, second))
            return CUDA_ERROR_INVALID_VALUE; /* a circle */
        if (add)
            nodes_add(&second->after, first);
        else
            nodes_remove(&second->after, first);
    }
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphAddDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                            const CUgraphEdgeData *data, size_t n) {
    (void)data; /* it only ever allows to start a kernel before the one it depends on has ended */
    return change_edges(graph, from, to, n, true);
}

CUresult emulated_cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t n) {
    return change_edges(graph, from, to, n, true);
}

CUresult emulated_cuGraphRemoveDependencies_v2(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                                               const CUgraphEdgeData *data, size_t n) {
    (void)data;
    return change_edges(graph, from, to, n, false);
}

CUresult emulated_cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to, size_t n) {
    return change_edges(graph, from, to, n, false);
}

CUresult emulated_cuGraphDestroyNode(CUgraphNode handle) {
    Node *node = node_find(handle);
    if (!node || node->graph->capturing)
        return node ? CUDA_ERROR_ILLEGAL_STATE : CUDA_ERROR_INVALID_VALUE;
    if (node->content.type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || node->content.type == CU_GRAPH_NODE_TYPE_MEM_FREE)
        return CUDA_ERROR_NOT_SUPPORTED; /* as the driver says */
    graph_remove(node);
    return CUDA_SUCCESS;
}

static const char *type_name(CUgraphNodeType type) {
    static const char *const names[] = {"kernel", "memcpy", "memset",     "host",
                                        "graph",  "empty",  "event wait", "event record"};
    if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || type == CU_GRAPH_NODE_TYPE_MEM_FREE)
        return type == CU_GRAPH_NODE_TYPE_MEM_ALLOC ? "mem alloc" : "mem free";
    return (size_t)type < sizeof names / sizeof *names ? names[type] : "node";
}

CUresult emulated_cuGraphDebugDotPrint(CUgraph handle, const char *path, unsigned int flags) {
    (void)flags;
    const Graph *graph = graph_find(handle);
    FILE *file = graph && path ? fopen(path, "we") : NULL;
    if (!file)
        return graph && path ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_ERROR_INVALID_VALUE;
    fprintf(file, "digraph graph_1 {\n");
    for (size_t i = 0; i < graph->nodes.n; i++) {
        const Node *node = graph->nodes.items[i];
        fprintf(file, "  n%" PRIxPTR " [label=\"%s %s\"];\n", (uintptr_t)node->object.handle,
                type_name(node->content.type),
                node->content.type == CU_GRAPH_NODE_TYPE_KERNEL ? work_name(&node->content.work) : "");
        for (size_t j = 0; j < node->after.n; j++)
            fprintf(file, "  n%" PRIxPTR " -> n%" PRIxPTR ";\n", (uintptr_t)node->after.items[j]->object.handle,
                    (uintptr_t)node->object.handle);
    }
    fprintf(file, "}\n");
    return fclose(file) ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}
