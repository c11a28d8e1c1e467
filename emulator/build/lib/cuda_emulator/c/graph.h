/* Graphs: nodes, what comes before what, and what each node does. */
#ifndef EMULATOR_GRAPH_H
#define EMULATOR_GRAPH_H

#include "memory.h"
#include "stream.h"

typedef struct Graph Graph;
typedef struct Node Node;

typedef struct Nodes {
    Node **items;
    size_t n;
} Nodes;

void nodes_add(Nodes *nodes, Node *node); /* once only */
void nodes_remove(Nodes *nodes, const Node *node); /* keeps the order of the others */
bool nodes_have(const Nodes *nodes, const Node *node);
void nodes_end(Nodes *nodes);
Nodes nodes_copy(const Nodes *nodes);

/* What a node does, in one of three forms: work, something with an event, or with memory of graphs. */
typedef struct Content {
    CUgraphNodeType type;
    Context *context; /* where it runs */
    Work work; /* kernel, memcpy, memset, host */
    CUevent event; /* event record, event wait */
    Graph *child; /* owned */
    CUdeviceptr address; /* mem alloc, mem free */
    CUDA_MEM_ALLOC_NODE_PARAMS_v2 alloc;
} Content;

/* From the API's description of a node and back. `description` gets the address of an allocation. */
CUresult content_make(CUgraphNodeParams *description, Content *content);
void content_describe(const Content *content, CUgraphNodeParams *description);
Content content_of_work(Work *work, Context *context); /* takes it over */
Content content_copy(const Content *content);
void content_release(Content *content);

struct Node {
    Object object;
    Graph *graph;
    Content content;
    Nodes after;
    CUgraphNode origin; /* in a clone: the node that it was cloned from */
};

struct UserObject;

struct Graph {
    Object object;
    Nodes nodes; /* in the order in which they were added */
    bool capturing; /* a capture is adding to it */
    struct UserReference {
        struct UserObject *object;
        unsigned count;
    } *users;
    size_t n_users;
};

Graph *graph_new(void);
void graph_end(Graph *graph);
CUresult graph_clone(const Graph *graph, Graph **clone);
Graph *graph_find(CUgraph handle);

/* Takes over the content; `after` is copied. */
Node *graph_add(Graph *graph, const Content *content, const Nodes *after);
void graph_remove(Node *node);
Node *node_find(CUgraphNode handle);

/* The nodes of an array of handles, all of `graph`; freed by nodes_end. */
CUresult nodes_find(const CUgraphNode *handles, size_t n, const Graph *graph, Nodes *nodes);

/* graph_memory.c */

/* Reserves an address; the memory behind it is there from the launch of the node on until it is freed. */
CUresult graph_memory_new(CUDA_MEM_ALLOC_NODE_PARAMS_v2 *params, Context *context);
void graph_memory_keep(CUdeviceptr address);
void graph_memory_drop(CUdeviceptr address);
bool is_graph_memory(CUdeviceptr address);

/* For a launch: counts the memory on its device. An allocation that an earlier launch made and nobody freed is an
 * error. */
CUresult graph_memory_launch(CUdeviceptr address, bool free_first);
void graph_memory_will_be_freed(CUdeviceptr address);

/* When the turn of the node has come. */
CUresult graph_memory_wake(CUdeviceptr address);
CUresult graph_memory_sleep(CUdeviceptr address);

/* user_objects.c */

void user_references_copy(const Graph *from, Graph *to);
void user_references_end(Graph *graph);

#endif
