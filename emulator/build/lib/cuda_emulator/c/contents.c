/* What nodes do: from and to the API's description, which is one union for all types. */
#include "copies.h"
#include "event.h"
#include "graph.h"
#include "kernel.h"

static CUresult context_of(CUcontext handle, Context **context) {
    if (!handle)
        return context_current(context);
    *context = context_find(handle);
    return *context ? context_state(*context) : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult make_kernel(const CUDA_KERNEL_NODE_PARAMS_v3 *kernel, Content *content) {
    EmulatorShape shape = {{kernel->gridDimX, kernel->gridDimY, kernel->gridDimZ},
                           {kernel->blockDimX, kernel->blockDimY, kernel->blockDimZ},
                           kernel->sharedMemBytes};
    CUfunction function = kernel->func ? kernel->func : (CUfunction)kernel->kern;
    content->work.kind = WORK_KERNEL;
    CUresult result = context_of(kernel->ctx, &content->context);
    if (result)
        return result;
    return launch_new(function, &shape, kernel->kernelParams, kernel->extra, content->context, &content->work.launch);
}

static CUresult make_copy(const CUDA_MEMCPY_NODE_PARAMS *copy, Content *content) {
    content->work.kind = WORK_COPY;
    CUresult result = context_of(copy->copyCtx, &content->context);
    if (result || (result = copy_of_box(&copy->copyParams, &content->work.copy)))
        return result;
    return copy_check(&content->work.copy);
}

static CUresult make_fill(const CUDA_MEMSET_NODE_PARAMS_v2 *fill, Content *content) {
    bool element = fill->elementSize == 1 || fill->elementSize == 2 || fill->elementSize == 4;
    if (!element || !fill->width || !fill->height)
        return CUDA_ERROR_INVALID_VALUE;
    content->work.kind = WORK_FILL;
    content->work.fill = (Fill){.target = fill->dst,
                                .pitch = fill->pitch,
                                .width = fill->width,
                                .height = fill->height,
                                .element = fill->elementSize,
                                .value = fill->value};
    CUresult result = context_of(fill->ctx, &content->context);
    return result ? result : fill_check(&content->work.fill, content->context);
}

static CUresult make_host(const CUDA_HOST_NODE_PARAMS_v2 *host, Content *content) {
    content->work.kind = WORK_HOST;
    content->work.host = (HostCall){.function = host->fn, .data = host->userData};
    return host->fn ? context_of(NULL, &content->context) : CUDA_ERROR_INVALID_VALUE;
}

static CUresult make_event(CUevent handle, Content *content) {
    Event *event;
    CUresult result = event_find(handle, &event);
    if (result)
        return result;
    content->event = handle;
    content->context = event->object.context;
    return CUDA_SUCCESS;
}

static CUresult make_alloc(CUDA_MEM_ALLOC_NODE_PARAMS_v2 *alloc, Content *content) {
    CUresult result = context_of(NULL, &content->context);
    if (result || (result = graph_memory_new(alloc, content->context)))
        return result;
    content->address = alloc->dptr;
    content->alloc = *alloc;
    content->alloc.accessDescs = NULL;
    content->alloc.accessDescCount = 0;
    return CUDA_SUCCESS;
}

static CUresult make_child(const CUDA_CHILD_GRAPH_NODE_PARAMS *child, Content *content) {
    const Graph *graph = graph_find(child->graph);
    if (!graph || child->ownership != CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE)
        return graph ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    return graph_clone(graph, &content->child);
}

CUresult content_make(CUgraphNodeParams *description, Content *content) {
    *content = (Content){.type = description->type};
    switch (description->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        return make_kernel(&description->kernel, content);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return make_copy(&description->memcpy, content);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return make_fill(&description->memset, content);
    case CU_GRAPH_NODE_TYPE_HOST:
        return make_host(&description->host, content);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return make_child(&description->graph, content);
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return make_event(description->eventWait.event, content);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return make_event(description->eventRecord.event, content);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return make_alloc(&description->alloc, content);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        content->address = description->free.dptr;
        return is_graph_memory(content->address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

Content content_of_work(Work *work, Context *context) {
    static const CUgraphNodeType types[N_WORK_KINDS] = {[WORK_MARK] = CU_GRAPH_NODE_TYPE_EMPTY,
                                                        [WORK_COPY] = CU_GRAPH_NODE_TYPE_MEMCPY,
                                                        [WORK_FILL] = CU_GRAPH_NODE_TYPE_MEMSET,
                                                        [WORK_KERNEL] = CU_GRAPH_NODE_TYPE_KERNEL,
                                                        [WORK_HOST] = CU_GRAPH_NODE_TYPE_HOST};
    return (Content){.type = types[work->kind], .context = context, .work = *work};
}

static void describe_kernel(const Content *content, CUDA_KERNEL_NODE_PARAMS_v3 *kernel) {
    const Launch *launch = &content->work.launch;
    const EmulatorShape *shape = &launch->shape;
    *kernel = (CUDA_KERNEL_NODE_PARAMS_v3){
        .func = launch->kernel->object.handle,
        .gridDimX = shape->grid[0],
        .gridDimY = shape->grid[1],
        .gridDimZ = shape->grid[2],
        .blockDimX = shape->block[0],
        .blockDimY = shape->block[1],
        .blockDimZ = shape->block[2],
        .sharedMemBytes = (unsigned)shape->shared_bytes,
        .kernelParams = launch->params->values,
        .ctx = content->context->object.handle,
    };
}

static void describe_copy(const Content *content, CUDA_MEMCPY_NODE_PARAMS *node) {
    const Copy *copy = &content->work.copy;
    *node = (CUDA_MEMCPY_NODE_PARAMS){.copyCtx = content->context->object.handle};
    node->copyParams = (CUDA_MEMCPY3D){
        .srcMemoryType = CU_MEMORYTYPE_UNIFIED,
        .srcDevice = copy->source,
        .srcPitch = copy->source_pitch,
        .srcHeight = copy->source_pitch ? copy->source_slice / copy->source_pitch : 0,
        .dstMemoryType = CU_MEMORYTYPE_UNIFIED,
        .dstDevice = copy->target,
        .dstPitch = copy->target_pitch,
        .dstHeight = copy->target_pitch ? copy->target_slice / copy->target_pitch : 0,
        .WidthInBytes = copy->width,
        .Height = copy->height,
        .Depth = copy->depth,
    };
}

static void describe_fill(const Content *content, CUDA_MEMSET_NODE_PARAMS_v2 *node) {
    const Fill *fill = &content->work.fill;
    *node = (CUDA_MEMSET_NODE_PARAMS_v2){.dst = fill->target,
                                         .pitch = fill->pitch,
                                         .value = fill->value,
                                         .elementSize = fill->element,
                                         .width = fill->width,
                                         .height = fill->height,
                                         .ctx = content->context->object.handle};
}

void content_describe(const Content *content, CUgraphNodeParams *description) {
    *description = (CUgraphNodeParams){.type = content->type};
    switch (content->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        describe_kernel(content, &description->kernel);
        return;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        describe_copy(content, &description->memcpy);
        return;
    case CU_GRAPH_NODE_TYPE_MEMSET:
        describe_fill(content, &description->memset);
        return;
    case CU_GRAPH_NODE_TYPE_HOST:
        description->host.fn = content->work.host.function;
        description->host.userData = content->work.host.data;
        return;
    case CU_GRAPH_NODE_TYPE_GRAPH:
        description->graph.graph = content->child->object.handle;
        return;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        description->eventWait.event = content->event;
        return;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        description->eventRecord.event = content->event;
        return;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        description->alloc = content->alloc;
        return;
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        description->free.dptr = content->address;
        return;
    default:
        return;
    }
}

Content content_copy(const Content *content) {
    Content copy = *content;
    copy.work = work_copy(&content->work);
    if (content->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        graph_memory_keep(content->address);
    if (content->child && graph_clone(content->child, &copy.child))
        copy.child = NULL;
    return copy;
}

void content_release(Content *content) {
    work_release(&content->work);
    if (content->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        graph_memory_drop(content->address);
    if (content->child)
        graph_end(content->child);
}
