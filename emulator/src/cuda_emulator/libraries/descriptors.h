/* What cuDNN's descriptors say. */
#ifndef EMULATED_DESCRIPTORS_H
#define EMULATED_DESCRIPTORS_H

#include "common.h"

typedef int Status;

enum {
    SUCCESS = 0,
    NOT_INITIALIZED = 1001,
    BAD_PARAM = 2000,
    BAD_NULL_POINTER = 2002,
    BAD_SIZE = 2006,
    BAD_STREAM = 2007,
    BAD_SHAPE = 2008,
    NOT_SUPPORTED = 3000,
    NOT_SUPPORTED_TYPE = 3003,
    NOT_SUPPORTED_LAYOUT = 3004,
    INTERNAL_ERROR = 4000,
    NO_HOST_MEMORY = 4003,
    NO_DEVICE_MEMORY = 4004,
    EXECUTION_FAILED = 5000,
    EXECUTION_FAILED_DRIVER = 5001,
    VERSION = 90000,
};

enum { FLOAT32 = 0, NCHW = 0, NHWC = 1, CROSS_CORRELATION = 1, RELU = 1 };

typedef enum DescriptorKind { TENSOR = 0x7e1, FILTER, CONVOLUTION, ACTIVATION } DescriptorKind;

typedef struct Descriptor {
    DescriptorKind kind;
    bool set;
    int extents[4]; /* of a tensor: n c h w; of a filter: k c h w */
    long steps[4]; /* of a tensor, in elements */
    int pad[2], stride[2], dilation[2], groups; /* of a convolution */
    int propagate; /* of an activation: what is no number passes through if 0 */
} Descriptor;

/* The status of something wrong, with the text that cudnnGetLastErrorString gives; `text` may name a number. */
Status fail(Status status, const char *call, const char *format, ...) __attribute__((format(printf, 3, 4)));
Status status_of(CUresult result, const char *call);

/* Begins a call that has no handle: SUCCESS, or the fault that is injected for it. */
Status begin(const char *call);

/* Stands around every call with a handle. */
Status enter(const char *call, void *given, Handle **handle);

/* SUCCESS if it is a descriptor of this kind that was set. */
Status check_descriptor(const void *given, DescriptorKind kind, const char *call);

#endif
