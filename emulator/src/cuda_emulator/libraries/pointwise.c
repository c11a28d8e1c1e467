/* What stands around a convolution: a bias, its gradient, and relu. */
#include <string.h>

#include "descriptors.h"

/* `from` may have extents of 1, which repeat. */
static Status pairs_of(const void *from_given, const void *to_given, const void *alpha, const void *beta,
                       const char *call, Pairs *pairs) {
    Status status;
    if ((status = check_descriptor(from_given, TENSOR, call)) || (status = check_descriptor(to_given, TENSOR, call)))
        return status;
    if (!alpha || !beta)
        return fail(BAD_NULL_POINTER, call, "alpha or beta is NULL");
    const Descriptor *from = from_given, *to = to_given;
    for (int i = 0; i < 4; i++) {
        if (from->extents[i] != to->extents[i] && from->extents[i] != 1)
            return fail(BAD_SHAPE, call, "extent %d is %d and %d", i, from->extents[i], to->extents[i]);
        pairs->extents[i] = to->extents[i];
        pairs->from[i] = from->extents[i] == to->extents[i] ? from->steps[i] : 0;
        pairs->to[i] = to->steps[i];
    }
    pairs->alpha = *(const float *)alpha;
    pairs->beta = *(const float *)beta;
    return SUCCESS;
}

static Status queue(const Handle *handle, const char *kernel, const Pairs *pairs, void **params, const char *call) {
    CUresult result = handle_launch(handle, kernel, (unsigned)pairs->extents[0], (unsigned)pairs->extents[1], params);
    return status_of(result, call);
}

PUBLIC Status cudnnAddTensor(void *given, const void *alpha, const void *a_descriptor, const void *a, const void *beta,
                             const void *c_descriptor, void *c) {
    static const char call[] = "cudnnAddTensor";
    Handle *handle;
    Pairs pairs;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    status = pairs_of(a_descriptor, c_descriptor, alpha, beta, call, &pairs);
    if (!status) {
        void *params[] = {&a, &c, &pairs};
        status = queue(handle, "add", &pairs, params, call);
    }
    handle_leave(handle);
    return status;
}

PUBLIC Status cudnnActivationForward(void *given, const void *how, const void *alpha, const void *x_descriptor,
                                     const void *x, const void *beta, const void *y_descriptor, void *y) {
    static const char call[] = "cudnnActivationForward";
    Handle *handle;
    Pairs pairs;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    status = check_descriptor(how, ACTIVATION, call);
    if (!status)
        status = pairs_of(x_descriptor, y_descriptor, alpha, beta, call, &pairs);
    if (!status) {
        int numbers = ((const Descriptor *)how)->propagate;
        void *params[] = {&x, &y, &pairs, &numbers};
        status = queue(handle, "relu", &pairs, params, call);
    }
    handle_leave(handle);
    return status;
}

PUBLIC Status cudnnActivationBackward(void *given, const void *how, const void *alpha, const void *y_descriptor,
                                      const void *y, const void *dy_descriptor, const void *dy,
                                      const void *x_descriptor, const void *x, const void *beta,
                                      const void *dx_descriptor, void *dx) {
    static const char call[] = "cudnnActivationBackward";
    (void)x_descriptor, (void)x; /* relu's gradient follows from its result */
    Handle *handle;
    Pairs pairs;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    status = check_descriptor(how, ACTIVATION, call);
    if (!status)
        status = pairs_of(dy_descriptor, dx_descriptor, alpha, beta, call, &pairs);
    if (!status)
        status = check_descriptor(y_descriptor, TENSOR, call);
    if (!status && memcmp(((const Descriptor *)y_descriptor)->steps, pairs.to, sizeof pairs.to))
        status = fail(NOT_SUPPORTED_LAYOUT, call, "y and dx must lie in memory in the same way");
    if (!status) {
        void *params[] = {&dy, &y, &dx, &pairs};
        status = queue(handle, "relu_gradient", &pairs, params, call);
    }
    handle_leave(handle);
    return status;
}

PUBLIC Status cudnnConvolutionBackwardBias(void *given, const void *alpha, const void *dy_descriptor, const void *dy,
                                           const void *beta, const void *db_descriptor, void *db) {
    static const char call[] = "cudnnConvolutionBackwardBias";
    Handle *handle;
    Pairs pairs;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    status = pairs_of(db_descriptor, dy_descriptor, alpha, beta, call, &pairs);
    if (!status) {
        /* Its terms are dy, and db repeats: the other way round than the descriptors stand above. */
        long db_channel = pairs.from[1];
        memcpy(pairs.from, pairs.to, sizeof pairs.from);
        pairs.to[1] = db_channel;
        void *params[] = {&dy, &db, &pairs};
        status = status_of(handle_launch(handle, "channel_sums", (unsigned)pairs.extents[1], 1, params), call);
    }
    handle_leave(handle);
    return status;
}
