/* Capturing. A session is one capture, from its begin to its end; it builds one graph. A Capture is a place in a
 * session: the nodes that the next one comes after. A stream that takes part in the session has one, and so has an
 * event recorded in it; a stream joins a session by waiting for such an event, and all have to be joined into the first
 * stream again before it ends. A mistake spoils the session: every call then fails until the end, which gives no graph.
 */
#include "capture.h"

#include <stdlib.h>

#include "call.h"
#include "thread.h"

typedef struct Session {
    int references; /* of captures */
    Graph *graph; /* NULL once ended */
    bool own_graph; /* not begun into a graph of the client's */
    bool spoilt;
    CUstreamCaptureMode mode;
    const Thread *thread; /* which began it */
    Stream *first;
    Nodes left; /* tips of streams that were destroyed meanwhile */
    uint64_t id;
    struct Session *next;
} Session;

typedef struct Capture {
    Session *session;
    Nodes tips;
    CUgraphNode *handles; /* of the tips, as cuStreamGetCaptureInfo lends them out */
    CUgraphEdgeData *edges; /* and of the edges to them: all of the plain kind */
} Capture;

static Session *sessions;
static uint64_t last_id;

static Capture *capture_new(Session *session, const Nodes *tips) {
    Capture *capture = claim(sizeof *capture);
    capture->session = session;
    capture->tips = nodes_copy(tips);
    session->references++;
    return capture;
}

static void capture_end(Capture *capture) {
    Session *session = capture->session;
    nodes_end(&capture->tips);
    free(capture->handles);
    free(capture->edges);
    free(capture);
    if (--session->references == 0)
        free(session);
}

static void tips_set(Capture *capture, Node *node) {
    nodes_end(&capture->tips);
    nodes_add(&capture->tips, node);
}

CUresult capture_violated(Stream *stream) {
    stream->capture->session->spoilt = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static CUresult add(Stream *stream, Content *content) {
    Capture *capture = stream->capture;
    if (capture->session->spoilt) {
        content_release(content);
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    Node *node = graph_add(capture->session->graph, content, &capture->tips);
    tips_set(capture, node);
    return CUDA_SUCCESS;
}

CUresult capture_add(Stream *stream, Content content) {
    return add(stream, &content);
}

CUresult capture_allocate(Stream *stream, Pool *pool, size_t size, CUdeviceptr *address) {
    if (stream->capture->session->spoilt)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (pool->place != PLACE_DEVICE || pool->file >= 0)
        return capture_violated(stream);
    CUgraphNodeParams description = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
    CUmemAccessDesc access[MAX_DEVICES];
    description.alloc.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    description.alloc.poolProps.location = pool->properties.location;
    description.alloc.bytesize = size;
    description.alloc.accessDescs = access;
    for (int i = 0; i < settings.devices; i++)
        if (pool_may_access(pool, &devices[i]))
            access[description.alloc.accessDescCount++].location =
                (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = i};
    Content content;
    CUresult result = content_make(&description, &content);
    if (result)
        return result;
    *address = content.address;
    return add(stream, &content);
}

CUresult capture_free(Stream *stream, CUdeviceptr address) {
    CUgraphNodeParams description = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .free = {.dptr = address}};
    Content content;
    CUresult result = content_make(&description, &content);
    return result ? result : add(stream, &content);
}

void capture_forget(Event *event) {
    if (event->captured)
        capture_end(event->captured);
    event->captured = NULL;
}

static CUresult add_event(Stream *stream, CUgraphNodeType type, const Event *event) {
    return capture_add(stream, (Content){.type = type, .context = stream->context, .event = event->object.handle});
}

CUresult capture_record(Stream *stream, Event *event, bool external) {
    if (external)
        return add_event(stream, CU_GRAPH_NODE_TYPE_EVENT_RECORD, event);
    if (stream->capture->session->spoilt)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    Capture *place = capture_new(stream->capture->session, &stream->capture->tips);
    event_set(event, NULL);
    event->captured = place;
    return CUDA_SUCCESS;
}

static CUresult spoil(Stream *stream, CUresult error) {
    if (stream->capture)
        stream->capture->session->spoilt = true;
    return error;
}

CUresult capture_wait(Stream *stream, Event *event, bool external) {
    Capture *place = event->captured, *mine = stream->capture;
    if (mine && mine->session->spoilt)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (external && mine && !place)
        return add_event(stream, CU_GRAPH_NODE_TYPE_WAIT_EVENT, event);
    if (!place)
        return spoil(stream, CUDA_ERROR_STREAM_CAPTURE_ISOLATION); /* the event is of no capture */
    if (!place->session->graph)
        return spoil(stream, CUDA_ERROR_INVALID_VALUE); /* its capture has ended */
    if (mine && mine->session != place->session) {
        place->session->spoilt = true;
        return spoil(stream, CUDA_ERROR_STREAM_CAPTURE_MERGE);
    }
    if (stream == stream->context->legacy) {
        place->session->spoilt = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    if (!mine)
        mine = stream->capture = capture_new(place->session, &(Nodes){0});
    for (size_t i = 0; i < place->tips.n; i++)
        nodes_add(&mine->tips, place->tips.items[i]);
    return CUDA_SUCCESS;
}

/* Every stream leaves the session; events keep their place in it, which is of no use any more. */
static void session_end(Session *session) {
    Session **link = &sessions;
    while (*link != session)
        link = &(*link)->next;
    *link = session->next;
    session->graph->capturing = false;
    session->graph = NULL;
    nodes_end(&session->left);
    session->references++;
    for (Context *context = contexts_first(); context; context = context->next)
        for (Stream *stream = context->streams; stream; stream = stream->next)
            if (stream->capture && stream->capture->session == session) {
                capture_end(stream->capture);
                stream->capture = NULL;
            }
    if (--session->references == 0)
        free(session);
}

static void session_discard(Session *session) {
    Graph *graph = session->own_graph ? session->graph : NULL;
    session_end(session);
    if (graph)
        graph_end(graph);
}

void capture_abandon(Stream *stream) {
    if (!stream->capture)
        return;
    Session *session = stream->capture->session;
    for (size_t i = 0; i < stream->capture->tips.n && session->graph; i++)
        nodes_add(&session->left, stream->capture->tips.items[i]);
    if (session->first == stream) {
        session_discard(session); /* the stream leaves it there */
        return;
    }
    capture_end(stream->capture);
    stream->capture = NULL;
}

/* In its own thread a capture forbids them in every mode but the relaxed one, in other threads only in the global mode;
 * and a thread may have asked for less by cuThreadExchangeStreamCaptureMode. */
CUresult capture_forbids_unsafe_calls(void) {
    const Thread *thread = thread_self();
    bool forbidden = false;
    for (Session *session = sessions; session; session = session->next) {
        bool mine = session->thread == thread && session->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        bool other =
            session->mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if ((mine || other) && thread->capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED)
            forbidden = session->spoilt = true;
    }
    return forbidden ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult capture_forbids_legacy(const Context *context) {
    bool forbidden = false;
    for (const Stream *stream = context->streams; stream; stream = stream->next)
        if (stream->capture && !(stream->flags & CU_STREAM_NON_BLOCKING))
            forbidden = stream->capture->session->spoilt = true;
    return forbidden ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
}

static CUresult begin(Stream *stream, Graph *graph, const Nodes *tips, CUstreamCaptureMode mode) {
    Session *session = claim(sizeof *session);
    session->own_graph = !graph;
    session->graph = graph ? graph : graph_new();
    session->graph->capturing = true;
    session->mode = mode;
    session->thread = thread_self();
    session->first = stream;
    session->id = ++last_id;
    session->next = sessions;
    sessions = session;
    stream->capture = capture_new(session, tips);
    return CUDA_SUCCESS;
}

static CUresult may_begin(CUstream handle, Stream **stream, CUstreamCaptureMode mode) {
    CUresult result = stream_find(handle, stream);
    if (result)
        return result;
    if ((unsigned)mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    if (*stream == (*stream)->context->legacy)
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    return (*stream)->capture ? CUDA_ERROR_ILLEGAL_STATE : CUDA_SUCCESS;
}

CUresult emulated_cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    Stream *stream;
    CUresult result = may_begin(handle, &stream, mode);
    return result ? result : begin(stream, NULL, &(Nodes){0}, mode);
}

CUresult emulated_cuStreamBeginCapture(CUstream handle) {
    return emulated_cuStreamBeginCapture_v2(handle, CU_STREAM_CAPTURE_MODE_GLOBAL);
}

CUresult emulated_cuStreamBeginCaptureToGraph(CUstream handle, CUgraph graph_handle, const CUgraphNode *after,
                                              const CUgraphEdgeData *data, size_t n, CUstreamCaptureMode mode) {
    (void)data;
    Stream *stream;
    Nodes tips;
    Graph *graph = graph_find(graph_handle);
    CUresult result = graph ? may_begin(handle, &stream, mode) : CUDA_ERROR_INVALID_VALUE;
    if (result || (result = nodes_find(after, n, graph, &tips)))
        return result;
    result = begin(stream, graph, &tips, mode);
    nodes_end(&tips);
    return result;
}

static void mark_before(const Node *node, Nodes *seen) {
    if (nodes_have(seen, node))
        return;
    nodes_add(seen, (Node *)node);
    for (size_t i = 0; i < node->after.n; i++)
        mark_before(node->after.items[i], seen);
}

/* Whether everything that other streams captured comes before the tips of the first one. */
static bool is_joined(const Session *session, const Stream *first) {
    Nodes seen = {0};
    bool joined = true;
    for (size_t i = 0; i < first->capture->tips.n; i++)
        mark_before(first->capture->tips.items[i], &seen);
    for (const Context *context = contexts_first(); context; context = context->next)
        for (const Stream *stream = context->streams; stream; stream = stream->next)
            if (stream->capture && stream->capture->session == session)
                for (size_t i = 0; i < stream->capture->tips.n; i++)
                    joined = joined && nodes_have(&seen, stream->capture->tips.items[i]);
    for (size_t i = 0; i < session->left.n; i++)
        joined = joined && nodes_have(&seen, session->left.items[i]);
    nodes_end(&seen);
    return joined;
}

CUresult emulated_cuStreamEndCapture(CUstream handle, CUgraph *graph_handle) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result)
        return result;
    if (!graph_handle)
        return CUDA_ERROR_INVALID_VALUE;
    *graph_handle = NULL;
    if (!stream->capture)
        return CUDA_ERROR_ILLEGAL_STATE;
    Session *session = stream->capture->session;
    if (session->first != stream) {
        session->spoilt = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (session->mode != CU_STREAM_CAPTURE_MODE_RELAXED && session->thread != thread_self())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    Graph *graph = session->graph;
    bool own = session->own_graph;
    if (session->spoilt)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else if (!is_joined(session, stream))
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    session_end(session);
    if (!result)
        *graph_handle = graph->object.handle;
    else if (own)
        graph_end(graph);
    return result;
}

static CUstreamCaptureStatus status_of(const Stream *stream) {
    if (!stream->capture)
        return CU_STREAM_CAPTURE_STATUS_NONE;
    return stream->capture->session->spoilt ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

CUresult emulated_cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || !status)
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    *status = status_of(stream);
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamGetCaptureInfo_v3(CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id,
                                            CUgraph *graph, const CUgraphNode **after, const CUgraphEdgeData **data,
                                            size_t *n) {
    Stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result || !status)
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    *status = status_of(stream);
    if (data)
        *data = NULL;
    if (*status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
        return CUDA_SUCCESS;
    Capture *capture = stream->capture;
    if (id)
        *id = capture->session->id;
    if (graph)
        *graph = capture->session->graph->object.handle;
    if (n)
        *n = capture->tips.n;
    if (after) {
        free(capture->handles);
        capture->handles = claim(capture->tips.n * sizeof *capture->handles);
        for (size_t i = 0; i < capture->tips.n; i++)
            capture->handles[i] = capture->tips.items[i]->object.handle;
        *after = capture->handles;
    }
    if (data) {
        free(capture->edges);
        capture->edges = claim(capture->tips.n * sizeof *capture->edges);
        *data = capture->edges;
    }
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id,
                                            CUgraph *graph, const CUgraphNode **after, size_t *n) {
    return emulated_cuStreamGetCaptureInfo_v3(stream, status, id, graph, after, NULL, n);
}

CUresult emulated_cuStreamGetCaptureInfo(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id) {
    return emulated_cuStreamGetCaptureInfo_v3(stream, status, id, NULL, NULL, NULL, NULL);
}

CUresult emulated_cuStreamUpdateCaptureDependencies_v2(CUstream handle, CUgraphNode *after, const CUgraphEdgeData *data,
                                                       size_t n, unsigned int flags) {
    (void)data;
    Stream *stream;
    Nodes nodes;
    CUresult result = stream_find(handle, &stream);
    if (result)
        return result;
    if (!stream->capture || flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES)
        return stream->capture ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_ILLEGAL_STATE;
    if ((result = nodes_find(after, n, stream->capture->session->graph, &nodes)))
        return result;
    if (flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES)
        nodes_end(&stream->capture->tips);
    for (size_t i = 0; i < nodes.n; i++)
        nodes_add(&stream->capture->tips, nodes.items[i]);
    nodes_end(&nodes);
    return CUDA_SUCCESS;
}

CUresult emulated_cuStreamUpdateCaptureDependencies(CUstream stream, CUgraphNode *after, size_t n, unsigned int flags) {
    return emulated_cuStreamUpdateCaptureDependencies_v2(stream, after, NULL, n, flags);
}

CUresult emulated_cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    Thread *thread = thread_self();
    if (!mode || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode before = thread->capture_mode;
    thread->capture_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}
