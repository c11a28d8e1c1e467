/* The calls that copy rows and boxes. */
#include "copies.h"
#include "memory.h"

typedef struct Side {
    CUmemorytype type;
    const void *host;
    CUdeviceptr device;
    size_t x, y, z, pitch, height;
} Side;

static CUresult start_of(Side side, size_t width, uintptr_t *start, size_t *pitch, size_t *slice) {
    if (side.type != CU_MEMORYTYPE_HOST && side.type != CU_MEMORYTYPE_DEVICE && side.type != CU_MEMORYTYPE_UNIFIED)
        return side.type == CU_MEMORYTYPE_ARRAY ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    uintptr_t base = side.type == CU_MEMORYTYPE_HOST ? (uintptr_t)side.host : side.device;
    *pitch = side.pitch ? side.pitch : side.x + width;
    *slice = *pitch * side.height;
    *start = base + side.z * *slice + side.y * *pitch + side.x;
    return base && *pitch >= side.x + width ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult copy_of_box(const CUDA_MEMCPY3D *box, Copy *copy) {
    if (!box)
        return CUDA_ERROR_INVALID_VALUE;
    Side target = {box->dstMemoryType, box->dstHost, box->dstDevice, box->dstXInBytes,
                   box->dstY,          box->dstZ,    box->dstPitch,  box->dstHeight};
    Side source = {box->srcMemoryType, box->srcHost, box->srcDevice, box->srcXInBytes,
                   box->srcY,          box->srcZ,    box->srcPitch,  box->srcHeight};
    *copy = (Copy){.width = box->WidthInBytes, .height = box->Height, .depth = box->Depth};
    bool flat = box->Depth <= 1 && !box->srcZ && !box->dstZ;
    if (!flat && (source.height < source.y + box->Height || target.height < target.y + box->Height))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = start_of(target, copy->width, &copy->target, &copy->target_pitch, &copy->target_slice);
    return result ? result : start_of(source, copy->width, &copy->source, &copy->source_pitch, &copy->source_slice);
}

static CUresult submit_box(CUstream stream, const CUDA_MEMCPY3D *box, bool asynchronous) {
    Copy copy;
    CUresult result = copy_of_box(box, &copy);
    return result ? result : copy_submit(stream, copy, asynchronous);
}

static CUresult submit_rows(CUstream stream, const CUDA_MEMCPY2D *rows, bool asynchronous) {
    if (!rows)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D box = {
        .srcXInBytes = rows->srcXInBytes,
        .srcY = rows->srcY,
        .srcMemoryType = rows->srcMemoryType,
        .srcHost = rows->srcHost,
        .srcDevice = rows->srcDevice,
        .srcPitch = rows->srcPitch,
        .dstXInBytes = rows->dstXInBytes,
        .dstY = rows->dstY,
        .dstMemoryType = rows->dstMemoryType,
        .dstHost = rows->dstHost,
        .dstDevice = rows->dstDevice,
        .dstPitch = rows->dstPitch,
        .WidthInBytes = rows->WidthInBytes,
        .Height = rows->Height,
        .Depth = 1,
    };
    return submit_box(stream, &box, asynchronous);
}

CUresult emulated_cuMemcpy2D_v2(const CUDA_MEMCPY2D *rows) {
    return submit_rows(NULL, rows, false);
}

CUresult emulated_cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *rows) {
    return submit_rows(NULL, rows, false);
}

CUresult emulated_cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *rows, CUstream stream) {
    return submit_rows(stream, rows, true);
}

CUresult emulated_cuMemcpy3D_v2(const CUDA_MEMCPY3D *box) {
    return submit_box(NULL, box, false);
}

CUresult emulated_cuMemcpy3DAsync_v2(const CUDA_MEMCPY3D *box, CUstream stream) {
    return submit_box(stream, box, true);
}

static CUresult submit_peer_box(CUstream stream, const CUDA_MEMCPY3D_PEER *peer, bool asynchronous) {
    if (!peer)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D box = {
        .srcXInBytes = peer->srcXInBytes,
        .srcY = peer->srcY,
        .srcZ = peer->srcZ,
        .srcMemoryType = peer->srcMemoryType,
        .srcHost = peer->srcHost,
        .srcDevice = peer->srcDevice,
        .srcPitch = peer->srcPitch,
        .srcHeight = peer->srcHeight,
        .dstXInBytes = peer->dstXInBytes,
        .dstY = peer->dstY,
        .dstZ = peer->dstZ,
        .dstMemoryType = peer->dstMemoryType,
        .dstHost = peer->dstHost,
        .dstDevice = peer->dstDevice,
        .dstPitch = peer->dstPitch,
        .dstHeight = peer->dstHeight,
        .WidthInBytes = peer->WidthInBytes,
        .Height = peer->Height,
        .Depth = peer->Depth,
    };
    return submit_box(stream, &box, asynchronous);
}

CUresult emulated_cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER *peer) {
    return submit_peer_box(NULL, peer, false);
}

CUresult emulated_cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *peer, CUstream stream) {
    return submit_peer_box(stream, peer, true);
}
