/* The calls that make executable graphs, change them and launch them. */
#include <stdlib.h>

#include "capture.h"
#include "exec.h"

static Exec *find(CUgraphExec handle) {
    return object_find(handle, OBJECT_EXEC);
}

static CUresult instantiate(CUgraphExec *handle, CUgraph graph_handle, cuuint64_t flags) {
    const Graph *graph = graph_find(graph_handle);
    if (!handle || !graph)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH)
        return CUDA_ERROR_NOT_SUPPORTED;
    Exec *exec = claim(sizeof *exec);
    exec->steps = steps_of(graph);
    exec->flags = flags;
    exec->users = graph_new();
    object_close(&exec->users->object); /* no client sees it */
    user_references_copy(graph, exec->users);
    *handle = object_open(&exec->object, OBJECT_EXEC, NULL);
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    return instantiate(exec, graph, flags);
}

CUresult emulated_cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                                     size_t size) {
    if (error_node)
        *error_node = NULL;
    if (log && size)
        *log = 0;
    return instantiate(exec, graph, 0);
}

CUresult emulated_cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log,
                                        size_t size) {
    return emulated_cuGraphInstantiate(exec, graph, error_node, log, size);
}

CUresult emulated_cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph,
                                               CUDA_GRAPH_INSTANTIATE_PARAMS *params) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = instantiate(exec, graph, params->flags);
    params->hErrNode_out = NULL;
    params->result_out = result ? CUDA_GRAPH_INSTANTIATE_ERROR : CUDA_GRAPH_INSTANTIATE_SUCCESS;
    return result;
}

CUresult emulated_cuGraphExecGetFlags(CUgraphExec handle, cuuint64_t *flags) {
    const Exec *exec = find(handle);
    if (!exec || !flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = exec->flags;
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphExecDestroy(CUgraphExec handle) {
    Exec *exec = find(handle);
    if (!exec)
        return CUDA_ERROR_INVALID_VALUE;
    object_close(&exec->object);
    steps_end(&exec->steps);
    record_drop(exec->last);
    graph_end(exec->users);
    free(exec);
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
    Stream *stream;
    if (!find(handle))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = stream_find(stream_handle, &stream);
    return result ? result : stream_not_capturing(stream);
}

/* Captured, a launch is a node that is the graph as it is now. */
static CUresult capture_launch(Stream *stream, const Steps *steps) {
    Graph *child = graph_new();
    for (size_t i = 0; i < steps->n; i++) {
        Content content = content_copy(&steps->items[i].content);
        Nodes none = {0};
        graph_add(child, &content, &none);
    }
    for (size_t i = 0; i < steps->n; i++)
        for (size_t j = 0; j < steps->items[i].n_after; j++)
            nodes_add(&child->nodes.items[i]->after, child->nodes.items[steps->items[i].after[j]]);
    return capture_add(stream, (Content){.type = CU_GRAPH_NODE_TYPE_GRAPH, .child = child});
}

CUresult emulated_cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    Exec *exec = find(handle);
    Stream *stream;
    Work work = {.kind = WORK_GRAPH};
    if (!exec)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = stream_find(stream_handle, &stream);
    if (result)
        return result;
    if (stream->capture)
        return capture_launch(stream, &exec->steps);
    if ((result = graph_run_new(exec, stream, &work.graph)))
        return result;
    Order after = {0};
    Record *record;
    order_add(&after, exec->last);
    result = stream_submit_after(stream, &work, &after, &record);
    if (!result) {
        record_drop(exec->last);
        exec->last = record;
    }
    return result;
}

static Step *step_of(const Exec *exec, CUgraphNode node) {
    for (size_t i = 0; exec && i < exec->steps.n; i++)
        if (exec->steps.items[i].node == node)
            return &exec->steps.items[i];
    return NULL;
}

CUresult exec_set(CUgraphExec handle, CUgraphNode node, CUgraphNodeParams *description) {
    Step *step = step_of(find(handle), node);
    Content content;
    if (!step || !description || step->content.type != description->type || step->content.address)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = content_make(description, &content);
    if (result)
        return result;
    content_release(&step->content);
    step->content = content;
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphExecNodeSetParams(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *description) {
    return exec_set(exec, node, description);
}

static bool can_be_disabled(const Step *step) {
    CUgraphNodeType type = step->content.type;
    return type == CU_GRAPH_NODE_TYPE_KERNEL || type == CU_GRAPH_NODE_TYPE_MEMCPY || type == CU_GRAPH_NODE_TYPE_MEMSET;
}

CUresult emulated_cuGraphNodeSetEnabled(CUgraphExec handle, CUgraphNode node, unsigned int enabled) {
    Step *step = step_of(find(handle), node);
    if (!step || !can_be_disabled(step))
        return CUDA_ERROR_INVALID_VALUE;
    step->disabled = !enabled;
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphNodeGetEnabled(CUgraphExec handle, CUgraphNode node, unsigned int *enabled) {
    const Step *step = step_of(find(handle), node);
    if (!step || !enabled)
        return CUDA_ERROR_INVALID_VALUE;
    *enabled = !step->disabled;
    return CUDA_SUCCESS;
}

static CUgraphExecUpdateResult difference(const Steps *old, const Steps *new, CUgraphNode *node) {
    if (old->n != new->n)
        return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    for (size_t i = 0; i < old->n; i++) {
        const Step *a = &old->items[i], *b = &new->items[i];
        *node = b->node;
        if (a->content.type != b->content.type)
            return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
        if (a->n_after != b->n_after)
            return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        for (size_t j = 0; j < a->n_after; j++)
            if (a->after[j] != b->after[j])
                return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        if (a->content.address != b->content.address)
            return CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    }
    *node = NULL;
    return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

/* Everything but the contents must be as it was. The steps keep the nodes that they were made of first. */
CUresult emulated_cuGraphExecUpdate_v2(CUgraphExec handle, CUgraph graph_handle, CUgraphExecUpdateResultInfo *info) {
    Exec *exec = find(handle);
    const Graph *graph = graph_find(graph_handle);
    if (!exec || !graph || !info)
        return CUDA_ERROR_INVALID_VALUE;
    Steps steps = steps_of(graph);
    *info = (CUgraphExecUpdateResultInfo){0};
    info->result = difference(&exec->steps, &steps, &info->errorNode);
    for (size_t i = 0; i < steps.n && info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS; i++) {
        Content content = exec->steps.items[i].content;
        exec->steps.items[i].content = steps.items[i].content;
        steps.items[i].content = content;
    }
    if (info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS)
        user_references_copy(graph, exec->users);
    steps_end(&steps);
    return info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
}

CUresult emulated_cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error_node,
                                    CUgraphExecUpdateResult *update) {
    CUgraphExecUpdateResultInfo info;
    CUresult result = emulated_cuGraphExecUpdate_v2(exec, graph, &info);
    if (result && result != CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE)
        return result;
    if (error_node)
        *error_node = info.errorNode;
    if (update)
        *update = info.result;
    return result;
}
