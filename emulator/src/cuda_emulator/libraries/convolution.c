/* Convolutions and their gradients. The algorithms with columns put one image's patches into the workspace, multiply,
 * and go on to the next image: two calls that share a workspace without order spoil each other's results. One has room
 * for those of all images. What each takes by the times of events can be declared (emulator_declare_time). */
#include <stdio.h>

#include "control.h"
#include "descriptors.h"

enum { IMPLICIT_GEMM = 0, GEMM = 2, GEMM_OF_ALL = 7 };
enum { BACKWARD_DIRECT = 0, BACKWARD_WITH_COLUMNS = 1 };

/* As cudnnConvolution*AlgoPerf_t. */
typedef struct Performance {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
} Performance;

typedef struct Shape {
    Window window; /* of all channels */
    int images, groups, filters, group_channels;
    long places; /* of the filter in an image */
    long x_image, y_image, y_channel, y_pixel;
} Shape;

static int places_along(int i, const Descriptor *x, const Descriptor *w, const Descriptor *how) {
    int covered = how->dilation[i] * (w->extents[2 + i] - 1) + 1;
    return (x->extents[2 + i] + 2 * how->pad[i] - covered) / how->stride[i] + 1;
}

/* Checks what belongs together, and says how it lies. */
static Status shape_of(const void *x_given, const void *w_given, const void *how_given, const void *y_given,
                       const char *call, Shape *shape) {
    Status status;
    if ((status = check_descriptor(x_given, TENSOR, call)) || (status = check_descriptor(w_given, FILTER, call)) ||
        (status = check_descriptor(how_given, CONVOLUTION, call)) || (status = check_descriptor(y_given, TENSOR, call)))
        return status;
    const Descriptor *x = x_given, *w = w_given, *how = how_given, *y = y_given;
    int height = places_along(0, x, w, how), width = places_along(1, x, w, how);
    if (x->extents[1] != w->extents[1] * how->groups || w->extents[0] % how->groups)
        return fail(BAD_SHAPE, call, "%d channels and %d filters of %d channels in %d groups", x->extents[1],
                    w->extents[0], w->extents[1], how->groups);
    if (y->extents[0] != x->extents[0] || y->extents[1] != w->extents[0] || y->extents[2] != height ||
        y->extents[3] != width || height < 1 || width < 1)
        return fail(BAD_SHAPE, call, "the result is (%d, %d, %d, %d), expected (%d, %d, %d, %d)", y->extents[0],
                    y->extents[1], y->extents[2], y->extents[3], x->extents[0], w->extents[0], height, width);
    if (y->steps[2] != y->steps[3] * width)
        return fail(NOT_SUPPORTED_LAYOUT, call, "rows of the result must lie behind each other");
    *shape = (Shape){
        .window = {x->extents[1], x->extents[2], x->extents[3], w->extents[2], w->extents[3], height, width,
                   how->pad[0], how->pad[1], how->stride[0], how->stride[1], how->dilation[0], how->dilation[1],
                   x->steps[1], x->steps[2], x->steps[3]},
        .images = x->extents[0],
        .groups = how->groups,
        .filters = w->extents[0],
        .group_channels = w->extents[1],
        .places = (long)height * width,
        .x_image = x->steps[0],
        .y_image = y->steps[0],
        .y_channel = y->steps[1],
        .y_pixel = y->steps[3],
    };
    return SUCCESS;
}

/* Elements of one filter. */
static int weights_of(const Shape *shape) {
    return shape->group_channels * shape->window.kernel_height * shape->window.kernel_width;
}

static size_t columns_bytes(const Shape *shape) {
    return sizeof(float) * (size_t)shape->groups * (size_t)weights_of(shape) * (size_t)shape->places;
}

/* Of an algorithm forward. */
static size_t forward_bytes(const Shape *shape, int algorithm) {
    size_t images = algorithm == IMPLICIT_GEMM ? 0 : algorithm == GEMM ? 1 : (size_t)shape->images;
    return images * columns_bytes(shape);
}

static size_t backward_bytes(const Shape *shape, int algorithm) {
    return algorithm == BACKWARD_WITH_COLUMNS ? columns_bytes(shape) : 0;
}

static bool is_forward(int algorithm) {
    return algorithm == IMPLICIT_GEMM || algorithm == GEMM || algorithm == GEMM_OF_ALL;
}

static bool is_backward(int algorithm) {
    return algorithm == BACKWARD_DIRECT || algorithm == BACKWARD_WITH_COLUMNS;
}

/* Behind what a call has queued. */
static void take_time(const Handle *handle, const char *call, int algorithm) {
    char name[80];
    snprintf(name, sizeof name, "%s/%d", call, algorithm);
    emulator_library_takes(name, handle->stream);
}

static Status check_workspace(size_t needed, const void *workspace, size_t bytes, const char *call) {
    if (bytes < needed || (needed && !workspace))
        return fail(BAD_SIZE, call, "the workspace has %zu bytes, this algorithm needs %zu", workspace ? bytes : 0, needed);
    return SUCCESS;
}

static CUresult queue_columns(const Handle *handle, const Shape *shape, const float *image, float *columns) {
    Window window = shape->window;
    void *params[] = {&image, &columns, &window};
    return handle_launch(handle, "im2col", (unsigned)(shape->groups * weights_of(shape)), 1, params);
}

PUBLIC Status cudnnGetConvolution2dForwardOutputDim(const void *how, const void *x, const void *w, int *n, int *c,
                                                    int *height, int *width) {
    static const char call[] = "cudnnGetConvolution2dForwardOutputDim";
    Status status = begin(call);
    if (status || (status = check_descriptor(x, TENSOR, call)) || (status = check_descriptor(w, FILTER, call)) ||
        (status = check_descriptor(how, CONVOLUTION, call)))
        return status;
    if (!n || !c || !height || !width)
        return fail(BAD_NULL_POINTER, call, "there is no place for the answer");
    *n = ((const Descriptor *)x)->extents[0];
    *c = ((const Descriptor *)w)->extents[0];
    *height = places_along(0, x, w, how);
    *width = places_along(1, x, w, how);
    return SUCCESS;
}

/* Forward -------------------------------------------------------------------------------------------------------- */

static CUresult queue_forward(const Handle *handle, const Shape *shape, int image, const float *x, const float *w,
                              float *columns, float alpha, float beta, float *y) {
    const float *from = x + image * shape->x_image;
    int size = weights_of(shape), per_group = shape->filters / shape->groups;
    CUresult result = columns ? queue_columns(handle, shape, from, columns) : CUDA_SUCCESS;
    for (int group = 0; group < shape->groups && !result; group++) {
        const float *filters = w + (long)group * per_group * size;
        float *out = y + image * shape->y_image + (long)group * per_group * shape->y_channel;
        if (columns) {
            Product sizes = {per_group, (int)shape->places, size, size, 1, shape->places, 1, shape->y_channel,
                             shape->y_pixel, alpha, beta};
            result = queue_product(handle, filters, columns + (long)group * size * shape->places, out, sizes);
        } else {
            Window window = shape->window;
            window.channels = shape->group_channels;
            const float *channels = from + (long)group * shape->group_channels * window.channel_step;
            long channel = shape->y_channel, pixel = shape->y_pixel;
            void *params[] = {&channels, &filters, &out, &window, &channel, &pixel, &alpha, &beta};
            result = handle_launch(handle, "convolve", (unsigned)per_group, 1, params);
        }
    }
    return result;
}

static Status forward(Handle *handle, const Shape *shape, const float *alpha, const float *x, const float *w,
                      int algorithm, void *workspace, size_t bytes, const float *beta, float *y, const char *call) {
    if (!is_forward(algorithm))
        return fail(NOT_SUPPORTED, call, "algorithms 0, 2 and 7 are here, not %d", algorithm);
    if (!alpha || !beta || !x || !w || !y)
        return fail(BAD_NULL_POINTER, call, "a pointer is NULL");
    Status status = check_workspace(forward_bytes(shape, algorithm), workspace, bytes, call);
    float *columns = algorithm == IMPLICIT_GEMM ? NULL : workspace;
    size_t step = algorithm == GEMM_OF_ALL ? columns_bytes(shape) / sizeof *columns : 0;
    for (int image = 0; image < shape->images && !status; image++) {
        float *own = columns ? columns + (size_t)image * step : NULL;
        status = status_of(queue_forward(handle, shape, image, x, w, own, *alpha, *beta, y), call);
    }
    if (!status)
        take_time(handle, call, algorithm);
    return status;
}

PUBLIC Status cudnnConvolutionForward(void *given, const void *alpha, const void *x_descriptor, const void *x,
                                      const void *w_descriptor, const void *w, const void *how, int algorithm,
                                      void *workspace, size_t bytes, const void *beta, const void *y_descriptor,
                                      void *y) {
    static const char call[] = "cudnnConvolutionForward";
    Handle *handle;
    Shape shape;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    status = shape_of(x_descriptor, w_descriptor, how, y_descriptor, call, &shape);
    if (!status)
        status = forward(handle, &shape, alpha, x, w, algorithm, workspace, bytes, beta, y, call);
    handle_leave(handle);
    return status;
}

/* Gradients ------------------------------------------------------------------------------------------------------ */

/* A group of an image, without columns. */
static CUresult queue_data_of_group(const Handle *handle, const Shape *shape, const float *filters, const float *from,
                                    float *to, float alpha, float beta) {
    Window window = shape->window;
    window.channels = shape->group_channels;
    int per_group = shape->filters / shape->groups;
    long channel = shape->y_channel, pixel = shape->y_pixel;
    void *params[] = {&from, &filters, &to, &window, &per_group, &channel, &pixel, &alpha, &beta};
    return handle_launch(handle, "convolve_back", (unsigned)window.channels, 1, params);
}

static CUresult queue_backward_data(const Handle *handle, const Shape *shape, int image, const float *w,
                                    const float *dy, float *columns, float alpha, float beta, float *dx) {
    int size = weights_of(shape), per_group = shape->filters / shape->groups;
    CUresult result = CUDA_SUCCESS;
    for (int group = 0; group < shape->groups && !result && !columns; group++)
        result = queue_data_of_group(
            handle, shape, w + (long)group * per_group * size,
            dy + image * shape->y_image + (long)group * per_group * shape->y_channel,
            dx + image * shape->x_image + (long)group * shape->group_channels * shape->window.channel_step, alpha, beta);
    if (!columns)
        return result;
    for (int group = 0; group < shape->groups && !result; group++) {
        Product sizes = {size, (int)shape->places, per_group, 1, size, shape->y_channel, shape->y_pixel, shape->places,
                         1, 1, 0};
        result = queue_product(handle, w + (long)group * per_group * size,
                               dy + image * shape->y_image + (long)group * per_group * shape->y_channel,
                               columns + (long)group * size * shape->places, sizes);
    }
    if (result)
        return result;
    Window window = shape->window;
    float *to = dx + image * shape->x_image;
    void *params[] = {&columns, &to, &window, &alpha, &beta};
    return handle_launch(handle, "col2im", (unsigned)window.channels, 1, params);
}

PUBLIC Status cudnnConvolutionBackwardData(void *given, const void *alpha, const void *w_descriptor, const void *w,
                                           const void *dy_descriptor, const void *dy, const void *how, int algorithm,
                                           void *workspace, size_t bytes, const void *beta, const void *dx_descriptor,
                                           void *dx) {
    static const char call[] = "cudnnConvolutionBackwardData";
    Handle *handle;
    Shape shape;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    if (!is_backward(algorithm))
        status = fail(NOT_SUPPORTED, call, "algorithms 0 and 1 are here, not %d", algorithm);
    else if (!alpha || !beta || !w || !dy || !dx)
        status = fail(BAD_NULL_POINTER, call, "a pointer is NULL");
    else if (!(status = shape_of(dx_descriptor, w_descriptor, how, dy_descriptor, call, &shape)))
        status = check_workspace(backward_bytes(&shape, algorithm), workspace, bytes, call);
    for (int image = 0; !status && image < shape.images; image++)
        status = status_of(queue_backward_data(handle, &shape, image, w, dy,
                                               algorithm == BACKWARD_DIRECT ? NULL : workspace, *(const float *)alpha,
                                               *(const float *)beta, dx),
                           call);
    if (!status)
        take_time(handle, call, algorithm);
    handle_leave(handle);
    return status;
}

static CUresult queue_filters_of_group(const Handle *handle, const Shape *shape, const float *image, const float *from,
                                       float *filters, float alpha, float beta) {
    Window window = shape->window;
    window.channels = shape->group_channels;
    long channel = shape->y_channel, pixel = shape->y_pixel;
    void *params[] = {&image, &from, &filters, &window, &channel, &pixel, &alpha, &beta};
    return handle_launch(handle, "convolve_filters", (unsigned)(shape->filters / shape->groups), 1, params);
}

static CUresult queue_backward_filter(const Handle *handle, const Shape *shape, int image, const float *x,
                                      const float *dy, float *columns, float alpha, float beta, float *dw) {
    int size = weights_of(shape), per_group = shape->filters / shape->groups;
    const float *own = x + image * shape->x_image;
    CUresult result = columns ? queue_columns(handle, shape, own, columns) : CUDA_SUCCESS;
    for (int group = 0; group < shape->groups && !result && !columns; group++)
        result = queue_filters_of_group(
            handle, shape, own + (long)group * shape->group_channels * shape->window.channel_step,
            dy + image * shape->y_image + (long)group * per_group * shape->y_channel,
            dw + (long)group * per_group * size, alpha, image ? 1 : beta);
    if (!columns)
        return result;
    for (int group = 0; group < shape->groups && !result; group++) {
        Product sizes = {per_group, size, (int)shape->places, shape->y_channel, shape->y_pixel, 1, shape->places, size,
                         1, alpha, image ? 1 : beta};
        result = queue_product(handle, dy + image * shape->y_image + (long)group * per_group * shape->y_channel,
                               columns + (long)group * size * shape->places, dw + (long)group * per_group * size, sizes);
    }
    return result;
}

PUBLIC Status cudnnConvolutionBackwardFilter(void *given, const void *alpha, const void *x_descriptor, const void *x,
                                             const void *dy_descriptor, const void *dy, const void *how, int algorithm,
                                             void *workspace, size_t bytes, const void *beta, const void *dw_descriptor,
                                             void *dw) {
    static const char call[] = "cudnnConvolutionBackwardFilter";
    Handle *handle;
    Shape shape;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    if (!is_backward(algorithm))
        status = fail(NOT_SUPPORTED, call, "algorithms 0 and 1 are here, not %d", algorithm);
    else if (!alpha || !beta || !x || !dy || !dw)
        status = fail(BAD_NULL_POINTER, call, "a pointer is NULL");
    else if (!(status = shape_of(x_descriptor, dw_descriptor, how, dy_descriptor, call, &shape)))
        status = check_workspace(backward_bytes(&shape, algorithm), workspace, bytes, call);
    for (int image = 0; !status && image < shape.images; image++)
        status = status_of(queue_backward_filter(handle, &shape, image, x, dy,
                                                 algorithm == BACKWARD_DIRECT ? NULL : workspace,
                                                 *(const float *)alpha, *(const float *)beta, dw),
                           call);
    if (!status)
        take_time(handle, call, algorithm);
    handle_leave(handle);
    return status;
}

/* What there is to choose from ----------------------------------------------------------------------------------- */

/* Bytes of an algorithm, by one of the functions above. */
typedef size_t BytesOf(const Shape *shape, int algorithm);

static Status ask_shape(void *given, const void *x, const void *w, const void *how, const void *y, const char *call,
                        Shape *shape) {
    Handle *handle;
    Status status = enter(call, given, &handle);
    if (status)
        return status;
    status = shape_of(x, w, how, y, call, shape);
    handle_leave(handle);
    return status;
}

static Status tell_bytes(void *handle, const void *x, const void *w, const void *how, const void *y, BytesOf *bytes_of,
                         int algorithm, size_t *bytes, const char *call) {
    Shape shape;
    if (!bytes)
        return fail(BAD_NULL_POINTER, call, "sizeInBytes is NULL");
    Status status = ask_shape(handle, x, w, how, y, call, &shape);
    if (!status)
        *bytes = bytes_of(&shape, algorithm);
    return status;
}

PUBLIC Status cudnnGetConvolutionForwardWorkspaceSize(void *handle, const void *x, const void *w, const void *how,
                                                      const void *y, int algorithm, size_t *bytes) {
    static const char call[] = "cudnnGetConvolutionForwardWorkspaceSize";
    if (!is_forward(algorithm))
        return fail(NOT_SUPPORTED, call, "algorithms 0, 2 and 7 are here, not %d", algorithm);
    return tell_bytes(handle, x, w, how, y, forward_bytes, algorithm, bytes, call);
}

PUBLIC Status cudnnGetConvolutionBackwardDataWorkspaceSize(void *handle, const void *w, const void *dy, const void *how,
                                                           const void *dx, int algorithm, size_t *bytes) {
    static const char call[] = "cudnnGetConvolutionBackwardDataWorkspaceSize";
    if (!is_backward(algorithm))
        return fail(NOT_SUPPORTED, call, "algorithms 0 and 1 are here, not %d", algorithm);
    return tell_bytes(handle, dx, w, how, dy, backward_bytes, algorithm, bytes, call);
}

PUBLIC Status cudnnGetConvolutionBackwardFilterWorkspaceSize(void *handle, const void *x, const void *dy,
                                                             const void *how, const void *dw, int algorithm,
                                                             size_t *bytes) {
    static const char call[] = "cudnnGetConvolutionBackwardFilterWorkspaceSize";
    if (!is_backward(algorithm))
        return fail(NOT_SUPPORTED, call, "algorithms 0 and 1 are here, not %d", algorithm);
    return tell_bytes(handle, x, dw, how, dy, backward_bytes, algorithm, bytes, call);
}

/* Best first, as far as anybody can know who does not time them. */
static const int forward_algorithms[] = {GEMM, IMPLICIT_GEMM, GEMM_OF_ALL};
static const int backward_algorithms[] = {BACKWARD_WITH_COLUMNS, BACKWARD_DIRECT};

static void tell_algorithms(const Shape *shape, const int *algorithms, int n, BytesOf *bytes_of, int most, int *told,
                            Performance *all) {
    *told = n < most ? n : most;
    for (int i = 0; i < *told; i++) {
        /* That of a gradient without columns gives equal bits here, and does not in NVIDIA's library. */
        bool repeats = algorithms == forward_algorithms || algorithms[i] != BACKWARD_DIRECT;
        all[i] = (Performance){.algorithm = algorithms[i],
                               .time = -1,
                               .memory = bytes_of(shape, algorithms[i]),
                               .determinism = repeats};
    }
}

static Status check_room(const int *told, const Performance *all, int most, const char *call) {
    return told && all && most > 0 ? SUCCESS : fail(BAD_NULL_POINTER, call, "there is no place for the answer");
}

PUBLIC Status cudnnGetConvolutionForwardAlgorithm_v7(void *handle, const void *x, const void *w, const void *how,
                                                     const void *y, int most, int *told, Performance *all) {
    static const char call[] = "cudnnGetConvolutionForwardAlgorithm_v7";
    Shape shape;
    Status status = check_room(told, all, most, call);
    if (!status && !(status = ask_shape(handle, x, w, how, y, call, &shape)))
        tell_algorithms(&shape, forward_algorithms, 3, forward_bytes, most, told, all);
    return status;
}

PUBLIC Status cudnnGetConvolutionBackwardDataAlgorithm_v7(void *handle, const void *w, const void *dy, const void *how,
                                                          const void *dx, int most, int *told, Performance *all) {
    static const char call[] = "cudnnGetConvolutionBackwardDataAlgorithm_v7";
    Shape shape;
    Status status = check_room(told, all, most, call);
    if (!status && !(status = ask_shape(handle, dx, w, how, dy, call, &shape)))
        tell_algorithms(&shape, backward_algorithms, 2, backward_bytes, most, told, all);
    return status;
}

PUBLIC Status cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *handle, const void *x, const void *dy,
                                                            const void *how, const void *dw, int most, int *told,
                                                            Performance *all) {
    static const char call[] = "cudnnGetConvolutionBackwardFilterAlgorithm_v7";
    Shape shape;
    Status status = check_room(told, all, most, call);
    if (!status && !(status = ask_shape(handle, x, dw, how, dy, call, &shape)))
        tell_algorithms(&shape, backward_algorithms, 2, backward_bytes, most, told, all);
    return status;
}
