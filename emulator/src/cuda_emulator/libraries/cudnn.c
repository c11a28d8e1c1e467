/* libcudnn.so.9: handles, descriptors and texts; convolution.c and pointwise.c have what is computed. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "descriptors.h"

static _Thread_local char last_error[256];

Status fail(Status status, const char *call, const char *format, ...) {
    int n = snprintf(last_error, sizeof last_error, "%s: ", call);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error + n, sizeof last_error - (size_t)n, format, arguments);
    va_end(arguments);
    return status;
}

Status status_of(CUresult result, const char *call) {
    const char *name = NULL;
    if (!result)
        return SUCCESS;
    cuGetErrorName(result, &name);
    Status status = result == CUDA_ERROR_OUT_OF_MEMORY   ? NO_DEVICE_MEMORY
                    : result == CUDA_ERROR_NOT_SUPPORTED ? NOT_SUPPORTED
                                                         : EXECUTION_FAILED_DRIVER;
    return fail(status, call, "the driver says %s", name ? name : "an unknown error");
}

Status enter(const char *call, void *given, Handle **handle) {
    Refusal refusal = handle_enter(call, given, handle);
    if (!refusal)
        return SUCCESS;
    if (refusal == INJECTED)
        return status_of(injected(), call);
    return fail(refusal == ELSEWHERE ? BAD_PARAM : NOT_INITIALIZED, call, "%s", refusal_text(refusal));
}

Status begin(const char *call) {
    return status_of((CUresult)emulator_library_call(call), call);
}

PUBLIC const char *emulated_library(void) {
    return "cudnn";
}

PUBLIC size_t cudnnGetVersion(void) {
    return VERSION;
}

PUBLIC Status cudnnGetProperty(int property, int *value) {
    static const int values[] = {VERSION / 10000, VERSION / 100 % 100, VERSION % 100};
    Status status = begin("cudnnGetProperty");
    if (status)
        return status;
    if (!value || property < 0 || property > 2)
        return fail(BAD_PARAM, "cudnnGetProperty", "there is no property %d", property);
    *value = values[property];
    return SUCCESS;
}

PUBLIC const char *cudnnGetErrorString(Status status) {
    static const struct {
        Status status;
        const char *name;
    } names[] = {
        {SUCCESS, "CUDNN_STATUS_SUCCESS"},
        {NOT_INITIALIZED, "CUDNN_STATUS_NOT_INITIALIZED"},
        {BAD_PARAM, "CUDNN_STATUS_BAD_PARAM"},
        {BAD_NULL_POINTER, "CUDNN_STATUS_BAD_PARAM_NULL_POINTER"},
        {BAD_SIZE, "CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT"},
        {BAD_STREAM, "CUDNN_STATUS_BAD_PARAM_STREAM_MISMATCH"},
        {BAD_SHAPE, "CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH"},
        {NOT_SUPPORTED, "CUDNN_STATUS_NOT_SUPPORTED"},
        {NOT_SUPPORTED_TYPE, "CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE"},
        {NOT_SUPPORTED_LAYOUT, "CUDNN_STATUS_NOT_SUPPORTED_LAYOUT"},
        {INTERNAL_ERROR, "CUDNN_STATUS_INTERNAL_ERROR"},
        {NO_HOST_MEMORY, "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"},
        {NO_DEVICE_MEMORY, "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"},
        {EXECUTION_FAILED, "CUDNN_STATUS_EXECUTION_FAILED"},
        {EXECUTION_FAILED_DRIVER, "CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].status == status)
            return names[i].name;
    return "CUDNN_UNKNOWN_STATUS";
}

PUBLIC void cudnnGetLastErrorString(char *message, size_t size) {
    if (message && size)
        snprintf(message, size, "%s", last_error);
}

PUBLIC Status cudnnCreate(void **handle) {
    if (!handle)
        return fail(BAD_NULL_POINTER, "cudnnCreate", "handle is NULL");
    CUresult result = handle_create("cudnnCreate", "cudnnHandle", (Handle **)handle);
    if (result == CUDA_ERROR_NOT_INITIALIZED || result == CUDA_ERROR_INVALID_CONTEXT)
        return fail(NOT_INITIALIZED, "cudnnCreate", "%s", refusal_text(NO_CONTEXT));
    return status_of(result, "cudnnCreate");
}

PUBLIC Status cudnnDestroy(void *given) {
    Handle *handle;
    Status status = enter("cudnnDestroy", given, &handle);
    if (status)
        return status;
    handle_leave(handle);
    return status_of(handle_destroy(handle), "cudnnDestroy");
}

PUBLIC Status cudnnSetStream(void *given, CUstream stream) {
    Handle *handle;
    Status status = enter("cudnnSetStream", given, &handle);
    if (status)
        return status;
    bool fine = handle_may_use(handle, stream);
    if (fine)
        handle->stream = stream;
    handle_leave(handle);
    return fine ? SUCCESS
                : fail(BAD_STREAM, "cudnnSetStream", "the stream is none, or belongs to another context than the handle");
}

PUBLIC Status cudnnGetStream(void *given, CUstream *stream) {
    Handle *handle;
    Status status = enter("cudnnGetStream", given, &handle);
    if (status)
        return status;
    if (stream)
        *stream = handle->stream;
    else
        status = fail(BAD_NULL_POINTER, "cudnnGetStream", "streamId is NULL");
    handle_leave(handle);
    return status;
}

/* Descriptors ---------------------------------------------------------------------------------------------------- */

Status check_descriptor(const void *given, DescriptorKind kind, const char *call) {
    static const char *const names[] = {"tensor", "filter", "convolution", "activation"};
    const Descriptor *descriptor = given;
    if (!descriptor)
        return fail(BAD_NULL_POINTER, call, "a descriptor is NULL");
    if (descriptor->kind != kind || !descriptor->set)
        return fail(BAD_PARAM, call, "a descriptor is no %s descriptor that was set", names[kind - TENSOR]);
    return SUCCESS;
}

static Status create(void **made, DescriptorKind kind, const char *call) {
    Status status = begin(call);
    if (status)
        return status;
    Descriptor *descriptor = made ? calloc(1, sizeof *descriptor) : NULL;
    if (!descriptor)
        return fail(made ? NO_HOST_MEMORY : BAD_NULL_POINTER, call, "no descriptor");
    descriptor->kind = kind;
    descriptor->groups = 1;
    *made = descriptor;
    emulator_library_object("cudnnDescriptor", 1);
    return SUCCESS;
}

static Status destroy(void *given, DescriptorKind kind, const char *call) {
    Descriptor *descriptor = given;
    Status status = begin(call);
    if (status || !descriptor)
        return status;
    if (descriptor->kind != kind)
        return fail(BAD_PARAM, call, "this is a descriptor of another kind");
    descriptor->kind = 0;
    free(descriptor);
    emulator_library_object("cudnnDescriptor", -1);
    return SUCCESS;
}

#define DESCRIPTOR(name, kind)                                                                                         \
    PUBLIC Status cudnnCreate##name(void **made) {                                                                     \
        return create(made, kind, "cudnnCreate" #name);                                                                \
    }                                                                                                                  \
    PUBLIC Status cudnnDestroy##name(void *given) {                                                                    \
        return destroy(given, kind, "cudnnDestroy" #name);                                                             \
    }

DESCRIPTOR(TensorDescriptor, TENSOR)
DESCRIPTOR(FilterDescriptor, FILTER)
DESCRIPTOR(ConvolutionDescriptor, CONVOLUTION)
DESCRIPTOR(ActivationDescriptor, ACTIVATION)

/* The descriptor to set, or NULL with the status. */
static Descriptor *settable(void *given, DescriptorKind kind, const char *call, Status *status) {
    Descriptor *descriptor = given;
    *status = begin(call);
    if (*status)
        return NULL;
    bool fine = descriptor && descriptor->kind == kind;
    *status = fine ? SUCCESS : fail(BAD_PARAM, call, "this is no such descriptor");
    return fine ? descriptor : NULL;
}

static Status set_extents(Descriptor *descriptor, const int *extents, int type, const char *call) {
    if (type != FLOAT32)
        return fail(NOT_SUPPORTED_TYPE, call, "the emulated library has float32 (0) only, not type %d", type);
    for (int i = 0; i < 4; i++)
        if (extents[i] < 1)
            return fail(BAD_PARAM, call, "extent %d is %d, expected 1 or more", i, extents[i]);
    memcpy(descriptor->extents, extents, sizeof descriptor->extents);
    descriptor->set = true;
    return SUCCESS;
}

static Status set_tensor(void *given, int type, const int *extents, const long *steps, const char *call) {
    Status status;
    Descriptor *descriptor = settable(given, TENSOR, call, &status);
    if (!descriptor)
        return status;
    memcpy(descriptor->steps, steps, sizeof descriptor->steps);
    return set_extents(descriptor, extents, type, call);
}

PUBLIC Status cudnnSetTensor4dDescriptorEx(void *given, int type, int n, int c, int h, int w, int n_step, int c_step,
                                           int h_step, int w_step) {
    return set_tensor(given, type, (const int[]){n, c, h, w}, (const long[]){n_step, c_step, h_step, w_step},
                      "cudnnSetTensor4dDescriptorEx");
}

PUBLIC Status cudnnSetTensor4dDescriptor(void *given, int format, int type, int n, int c, int h, int w) {
    static const char call[] = "cudnnSetTensor4dDescriptor";
    const long packed[] = {c * h * w, h * w, w, 1}, channels_last[] = {c * h * w, 1, w * c, c};
    if (format != NCHW && format != NHWC) {
        Status status = begin(call);
        return status ? status : fail(NOT_SUPPORTED_LAYOUT, call, "there is no format %d here", format);
    }
    return set_tensor(given, type, (const int[]){n, c, h, w}, format == NCHW ? packed : channels_last, call);
}

PUBLIC Status cudnnSetFilter4dDescriptor(void *given, int type, int format, int k, int c, int h, int w) {
    static const char call[] = "cudnnSetFilter4dDescriptor";
    Status status;
    Descriptor *descriptor = settable(given, FILTER, call, &status);
    if (!descriptor)
        return status;
    if (format != NCHW)
        return fail(NOT_SUPPORTED_LAYOUT, call, "filters are KCRS (format 0) here, not of format %d", format);
    return set_extents(descriptor, (const int[]){k, c, h, w}, type, call);
}

PUBLIC Status cudnnSetConvolution2dDescriptor(void *given, int pad_h, int pad_w, int stride_h, int stride_w,
                                              int dilation_h, int dilation_w, int mode, int type) {
    static const char call[] = "cudnnSetConvolution2dDescriptor";
    Status status;
    Descriptor *descriptor = settable(given, CONVOLUTION, call, &status);
    if (!descriptor)
        return status;
    if (type != FLOAT32)
        return fail(NOT_SUPPORTED_TYPE, call, "the emulated library computes in float32 (0) only, not in type %d", type);
    if (mode != CROSS_CORRELATION)
        return fail(NOT_SUPPORTED, call, "the mode is cross-correlation (1) here, not %d", mode);
    if (pad_h < 0 || pad_w < 0 || stride_h < 1 || stride_w < 1 || dilation_h < 1 || dilation_w < 1)
        return fail(BAD_PARAM, call, "padding is 0 or more, stride and dilation 1 or more");
    const int values[] = {pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w};
    memcpy(descriptor->pad, values, sizeof descriptor->pad);
    memcpy(descriptor->stride, values + 2, sizeof descriptor->stride);
    memcpy(descriptor->dilation, values + 4, sizeof descriptor->dilation);
    descriptor->set = true;
    return SUCCESS;
}

PUBLIC Status cudnnSetConvolutionGroupCount(void *given, int groups) {
    Status status;
    Descriptor *descriptor = settable(given, CONVOLUTION, "cudnnSetConvolutionGroupCount", &status);
    if (!descriptor || groups < 1)
        return descriptor ? fail(BAD_PARAM, "cudnnSetConvolutionGroupCount", "%d groups", groups) : status;
    descriptor->groups = groups;
    return SUCCESS;
}

/* How float32 is computed: here always as it says. */
PUBLIC Status cudnnSetConvolutionMathType(void *given, int type) {
    Status status;
    Descriptor *descriptor = settable(given, CONVOLUTION, "cudnnSetConvolutionMathType", &status);
    bool known = type >= 0 && type <= 3;
    return descriptor && !known ? fail(BAD_PARAM, "cudnnSetConvolutionMathType", "there is no type %d", type) : status;
}

PUBLIC Status cudnnSetActivationDescriptor(void *given, int mode, int propagate, double coefficient) {
    (void)coefficient;
    Status status;
    Descriptor *descriptor = settable(given, ACTIVATION, "cudnnSetActivationDescriptor", &status);
    if (!descriptor)
        return status;
    if (mode != RELU)
        return fail(NOT_SUPPORTED, "cudnnSetActivationDescriptor", "relu (1) is here only, not mode %d", mode);
    descriptor->propagate = !propagate; /* CUDNN_PROPAGATE_NAN is 1 */
    descriptor->set = true;
    return SUCCESS;
}
