/* User objects: the client's data that lives as long as graphs refer to it. The client's destroy function is its own
 * code, so it runs in a thread of its own, without the lock, and must not call the driver. */
#include <stdlib.h>

#include "graph.h"
#include "thread.h"

typedef struct UserObject {
    Object object;
    void *data;
    CUhostFn destroy;
    unsigned references;
} UserObject;

static void *destroy(void *data) {
    UserObject *user = data;
    thread_self()->in_host_function = true;
    user->destroy(user->data);
    free(user);
    return NULL;
}

static void drop(UserObject *user, unsigned count) {
    if (user->references -= count)
        return;
    object_close(&user->object);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, destroy, user))
        say("no thread for the end of a user object: it is not destroyed");
    pthread_attr_destroy(&attributes);
}

static UserObject *find(CUuserObject handle) {
    return object_find(handle, OBJECT_USER);
}

static void refer(Graph *graph, UserObject *user, unsigned count) {
    for (size_t i = 0; i < graph->n_users; i++)
        if (graph->users[i].object == user) {
            graph->users[i].count += count;
            return;
        }
    graph->users = realloc(graph->users, (graph->n_users + 1) * sizeof *graph->users);
    if (!graph->users)
        abort();
    graph->users[graph->n_users++] = (struct UserReference){user, count};
}

void user_references_copy(const Graph *from, Graph *to) {
    for (size_t i = 0; i < from->n_users; i++) {
        from->users[i].object->references += from->users[i].count;
        refer(to, from->users[i].object, from->users[i].count);
    }
}

void user_references_end(Graph *graph) {
    for (size_t i = 0; i < graph->n_users; i++)
        if (graph->users[i].count)
            drop(graph->users[i].object, graph->users[i].count);
    free(graph->users);
    graph->users = NULL;
    graph->n_users = 0;
}

CUresult emulated_cuUserObjectCreate(CUuserObject *handle, void *data, CUhostFn destroy_data, unsigned int references,
                                     unsigned int flags) {
    if (!handle || !destroy_data || !references || flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
        return CUDA_ERROR_INVALID_VALUE;
    UserObject *user = claim(sizeof *user);
    user->data = data;
    user->destroy = destroy_data;
    user->references = references;
    *handle = object_open(&user->object, OBJECT_USER, NULL);
    return CUDA_SUCCESS;
}

CUresult emulated_cuUserObjectRetain(CUuserObject handle, unsigned int count) {
    UserObject *user = find(handle);
    if (!user || !count)
        return CUDA_ERROR_INVALID_VALUE;
    user->references += count;
    return CUDA_SUCCESS;
}

CUresult emulated_cuUserObjectRelease(CUuserObject handle, unsigned int count) {
    UserObject *user = find(handle);
    if (!user || !count || count > user->references)
        return CUDA_ERROR_INVALID_VALUE;
    drop(user, count);
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphRetainUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count,
                                          unsigned int flags) {
    Graph *graph = graph_find(graph_handle);
    UserObject *user = find(handle);
    if (!graph || !user || !count || flags & ~(unsigned)CU_GRAPH_USER_OBJECT_MOVE)
        return CUDA_ERROR_INVALID_VALUE;
    if (!(flags & CU_GRAPH_USER_OBJECT_MOVE))
        user->references += count;
    refer(graph, user, count);
    return CUDA_SUCCESS;
}

CUresult emulated_cuGraphReleaseUserObject(CUgraph graph_handle, CUuserObject handle, unsigned int count) {
    Graph *graph = graph_find(graph_handle);
    UserObject *user = find(handle);
    if (!graph || !user || !count)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < graph->n_users; i++)
        if (graph->users[i].object == user && graph->users[i].count >= count) {
            graph->users[i].count -= count;
            drop(user, count);
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}
