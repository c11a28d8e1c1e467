/* Peer access between devices: which pairs can have it (CUDA_EMULATOR_PEERS), and which contexts have asked for it. */
#include "context.h"

static bool possible(const Device *from, const Device *to) {
    return from != to && settings.peers[from->ordinal] >> to->ordinal & 1;
}

bool context_may_access(const Context *context, const Device *owner) {
    return context->device == owner || context->peers >> owner->ordinal & 1;
}

CUresult emulated_cuDeviceCanAccessPeer(int *can, CUdevice from, CUdevice to) {
    if (!can)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(from) || !device_at(to))
        return CUDA_ERROR_INVALID_DEVICE;
    *can = possible(&devices[from], &devices[to]);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice from, CUdevice to) {
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(from) || !device_at(to) || from == to)
        return CUDA_ERROR_INVALID_DEVICE;
    bool access = attribute == CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED ||
                  attribute == CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED;
    *value = access && possible(&devices[from], &devices[to]);
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxEnablePeerAccess(CUcontext handle, unsigned int flags) {
    Context *context, *peer = context_find(handle);
    CUresult result = context_current(&context);
    if (result)
        return result;
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (!peer || peer->device == context->device)
        return peer ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_INVALID_CONTEXT;
    if (!possible(context->device, peer->device))
        return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    if (context_may_access(context, peer->device))
        return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    context->peers |= 1u << peer->device->ordinal;
    return CUDA_SUCCESS;
}

CUresult emulated_cuCtxDisablePeerAccess(CUcontext handle) {
    Context *context, *peer = context_find(handle);
    CUresult result = context_current(&context);
    if (result)
        return result;
    if (!peer || peer->device == context->device)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!context_may_access(context, peer->device))
        return CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    context->peers &= ~(1u << peer->device->ordinal);
    return CUDA_SUCCESS;
}
