/* The calls that add nodes, read and change what they do: every type by the same three functions. */
#include <string.h>

#include "exec.h"
#include "graph.h"

static CUresult add(CUgraphNode *handle, CUgraph graph_handle, const CUgraphNode *after, size_t n,
                    CUgraphNodeParams *description) {
    Graph *graph = graph_find(graph_handle);
    Nodes nodes;
    Content content;
    if (!handle || !graph || !description)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = nodes_find(after, n, graph, &nodes);
    if (result)
        return result;
    result = content_make(description, &content);
    if (!result)
        *handle = graph_add(graph, &content, &nodes)->object.handle;
    nodes_end(&nodes);
    return result;
}

static CUresult get(CUgraphNode handle, CUgraphNodeType type, CUgraphNodeParams *description) {
    const Node *node = node_find(handle);
    if (!node || node->content.type != type)
        return CUDA_ERROR_INVALID_VALUE;
    content_describe(&node->content, description);
    return CUDA_SUCCESS;
}

static CUresult set(CUgraphNode handle, CUgraphNodeParams *description) {
    Node *node = node_find(handle);
    Content content;
    if (!node || !description || node->content.type != description->type || node->content.address)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = content_make(description, &content);
    if (result)
        return result;
    content_release(&node->content);
    node->content = content;
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
                                    const CUgraphEdgeData *data, size_t n, CUgraphNodeParams *description) {
    (void)data;
    return add(node, graph, after, n, description);
}

CUresult emulated_cuGraphAddNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                 CUgraphNodeParams *description) {
    return add(node, graph, after, n, description);
}

CUresult emulated_cuGraphNodeSetParams(CUgraphNode node, CUgraphNodeParams *description) {
    return set(node, description);
}

CUresult emulated_cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType *type) {
    const Node *node = node_find(handle);
    if (!node || !type)
        return CUDA_ERROR_INVALID_VALUE;
    *type = node->content.type;
    return CUDA_SUCCESS;
}

/* The structures of the calls for one type are the union's, or older ones that are a beginning of them. */
#define BEGINS(older, newer) _Static_assert(sizeof(older) <= sizeof(newer), #older)
BEGINS(CUDA_KERNEL_NODE_PARAMS_v1, CUDA_KERNEL_NODE_PARAMS_v3);
BEGINS(CUDA_KERNEL_NODE_PARAMS_v2, CUDA_KERNEL_NODE_PARAMS_v3);
BEGINS(CUDA_MEMSET_NODE_PARAMS_v1, CUDA_MEMSET_NODE_PARAMS_v2);
BEGINS(CUDA_HOST_NODE_PARAMS_v1, CUDA_HOST_NODE_PARAMS_v2);
BEGINS(CUDA_MEM_ALLOC_NODE_PARAMS_v1, CUDA_MEM_ALLOC_NODE_PARAMS_v2);

static CUgraphNodeParams older(CUgraphNodeType type, const void *params, size_t size) {
    CUgraphNodeParams description = {.type = type};
    memcpy(&description.kernel, params, size);
    return description;
}

static CUresult add_older(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n, CUgraphNodeType type,
                          const void *params, size_t size) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = older(type, params, size);
    return add(node, graph, after, n, &description);
}

static CUresult get_older(CUgraphNode node, CUgraphNodeType type, void *params, size_t size) {
    CUgraphNodeParams description;
    CUresult result = params ? get(node, type, &description) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        memcpy(params, &description.kernel, size);
    return result;
}

/* In the graph itself, or in an executable graph made of it. */
static CUresult set_older(CUgraphExec exec, CUgraphNode node, CUgraphNodeType type, const void *params, size_t size) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = older(type, params, size);
    return exec ? exec_set(exec, node, &description) : set(node, &description);
}

static CUgraphNodeParams of_copy(const CUDA_MEMCPY3D *copy, CUcontext context) {
    CUgraphNodeParams description = {.type = CU_GRAPH_NODE_TYPE_MEMCPY};
    description.memcpy = (CUDA_MEMCPY_NODE_PARAMS){.copyCtx = context, .copyParams = *copy};
    return description;
}

static CUgraphNodeParams of_fill(const CUDA_MEMSET_NODE_PARAMS *fill, CUcontext context) {
    CUgraphNodeParams description = older(CU_GRAPH_NODE_TYPE_MEMSET, fill, sizeof *fill);
    description.memset.ctx = context;
    return description;
}

CUresult emulated_cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                          const CUDA_KERNEL_NODE_PARAMS *params) {
    return add_older(node, graph, after, n, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult emulated_cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                       const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    return add_older(node, graph, after, n, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult emulated_cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS *params) {
    return get_older(node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult emulated_cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    return get_older(node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult emulated_cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *params) {
    return set_older(NULL, node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult emulated_cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    return set_older(NULL, node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params);
}

CUresult emulated_cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                    const CUDA_KERNEL_NODE_PARAMS *params) {
    return exec ? set_older(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_KERNEL_NODE_PARAMS_v1 *params) {
    return exec ? set_older(exec, node, CU_GRAPH_NODE_TYPE_KERNEL, params, sizeof *params) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuGraphAddMemcpyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                       const CUDA_MEMCPY3D *copy, CUcontext context) {
    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = of_copy(copy, context);
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D *copy) {
    CUgraphNodeParams description;
    CUresult result = copy ? get(node, CU_GRAPH_NODE_TYPE_MEMCPY, &description) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *copy = description.memcpy.copyParams;
    return result;
}

CUresult emulated_cuGraphMemcpyNodeSetParams(CUgraphNode handle, const CUDA_MEMCPY3D *copy) {
    const Node *node = node_find(handle);
    if (!node || !copy)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = of_copy(copy, node->content.context ? node->content.context->object.handle : NULL);
    return set(handle, &description);
}

CUresult emulated_cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D *copy,
                                                 CUcontext context) {
    if (!copy)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = of_copy(copy, context);
    return exec_set(exec, node, &description);
}

CUresult emulated_cuGraphAddMemsetNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                       const CUDA_MEMSET_NODE_PARAMS *fill, CUcontext context) {
    if (!fill)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = of_fill(fill, context);
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphMemsetNodeGetParams(CUgraphNode node, CUDA_MEMSET_NODE_PARAMS *fill) {
    return get_older(node, CU_GRAPH_NODE_TYPE_MEMSET, fill, sizeof *fill);
}

CUresult emulated_cuGraphMemsetNodeSetParams(CUgraphNode node, const CUDA_MEMSET_NODE_PARAMS *fill) {
    return set_older(NULL, node, CU_GRAPH_NODE_TYPE_MEMSET, fill, sizeof *fill);
}

CUresult emulated_cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_MEMSET_NODE_PARAMS *fill, CUcontext context) {
    if (!fill)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = of_fill(fill, context);
    return exec_set(exec, node, &description);
}

CUresult emulated_cuGraphAddHostNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                     const CUDA_HOST_NODE_PARAMS *host) {
    return add_older(node, graph, after, n, CU_GRAPH_NODE_TYPE_HOST, host, sizeof *host);
}

CUresult emulated_cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS *host) {
    return get_older(node, CU_GRAPH_NODE_TYPE_HOST, host, sizeof *host);
}

CUresult emulated_cuGraphHostNodeSetParams(CUgraphNode node, const CUDA_HOST_NODE_PARAMS *host) {
    return set_older(NULL, node, CU_GRAPH_NODE_TYPE_HOST, host, sizeof *host);
}

CUresult emulated_cuGraphExecHostNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_HOST_NODE_PARAMS *host) {
    return exec ? set_older(exec, node, CU_GRAPH_NODE_TYPE_HOST, host, sizeof *host) : CUDA_ERROR_INVALID_VALUE;
}

CUresult emulated_cuGraphAddEmptyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n) {
    CUgraphNodeParams description = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                           CUgraph child) {
    CUgraphNodeParams description = {.type = CU_GRAPH_NODE_TYPE_GRAPH, .graph = {.graph = child}};
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *child) {
    CUgraphNodeParams description;
    CUresult result = child ? get(node, CU_GRAPH_NODE_TYPE_GRAPH, &description) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *child = description.graph.graph;
    return result;
}

static CUgraphNodeParams of_event(CUgraphNodeType type, CUevent event) {
    CUgraphNodeParams description = {.type = type};
    if (type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
        description.eventRecord.event = event;
    else
        description.eventWait.event = event;
    return description;
}

static CUresult get_event(CUgraphNode node, CUgraphNodeType type, CUevent *event) {
    CUgraphNodeParams description;
    CUresult result = event ? get(node, type, &description) : CUDA_ERROR_INVALID_VALUE;
    if (!result)
        *event = type == CU_GRAPH_NODE_TYPE_EVENT_RECORD ? description.eventRecord.event : description.eventWait.event;
    return result;
}

CUresult emulated_cuGraphAddEventRecordNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                            CUevent event) {
    CUgraphNodeParams description = of_event(CU_GRAPH_NODE_TYPE_EVENT_RECORD, event);
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphAddEventWaitNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                          CUevent event) {
    CUgraphNodeParams description = of_event(CU_GRAPH_NODE_TYPE_WAIT_EVENT, event);
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphEventRecordNodeGetEvent(CUgraphNode node, CUevent *event) {
    return get_event(node, CU_GRAPH_NODE_TYPE_EVENT_RECORD, event);
}

CUresult emulated_cuGraphEventWaitNodeGetEvent(CUgraphNode node, CUevent *event) {
    return get_event(node, CU_GRAPH_NODE_TYPE_WAIT_EVENT, event);
}

CUresult emulated_cuGraphEventRecordNodeSetEvent(CUgraphNode node, CUevent event) {
    CUgraphNodeParams description = of_event(CU_GRAPH_NODE_TYPE_EVENT_RECORD, event);
    return set(node, &description);
}

CUresult emulated_cuGraphEventWaitNodeSetEvent(CUgraphNode node, CUevent event) {
    CUgraphNodeParams description = of_event(CU_GRAPH_NODE_TYPE_WAIT_EVENT, event);
    return set(node, &description);
}

CUresult emulated_cuGraphExecEventRecordNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
    CUgraphNodeParams description = of_event(CU_GRAPH_NODE_TYPE_EVENT_RECORD, event);
    return exec_set(exec, node, &description);
}

CUresult emulated_cuGraphExecEventWaitNodeSetEvent(CUgraphExec exec, CUgraphNode node, CUevent event) {
    CUgraphNodeParams description = of_event(CU_GRAPH_NODE_TYPE_WAIT_EVENT, event);
    return exec_set(exec, node, &description);
}

CUresult emulated_cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                         CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams description = older(CU_GRAPH_NODE_TYPE_MEM_ALLOC, params, sizeof *params);
    CUresult result = add(node, graph, after, n, &description);
    if (!result)
        params->dptr = description.alloc.dptr;
    return result;
}

CUresult emulated_cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params) {
    return get_older(node, CU_GRAPH_NODE_TYPE_MEM_ALLOC, params, sizeof *params);
}

CUresult emulated_cuGraphAddMemFreeNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t n,
                                        CUdeviceptr address) {
    CUgraphNodeParams description = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .free = {.dptr = address}};
    return add(node, graph, after, n, &description);
}

CUresult emulated_cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *address) {
    return get_older(node, CU_GRAPH_NODE_TYPE_MEM_FREE, address, sizeof *address);
}
