/* The devices: how many, how much memory, and what the driver says about them. */
#include <stdio.h>

#include "context.h"
#include "pool.h"

Device devices[MAX_DEVICES];

Device *device_at(CUdevice ordinal) {
    return ordinal >= 0 && ordinal < settings.devices ? &devices[ordinal] : NULL;
}

/* The settings that are one for each device are told for all of them; from here on they are those of the visible ones.
 */
static void select_settings(const int *physical, int n) {
    Settings all = settings;
    settings.devices = n;
    for (int i = 0; i < n; i++) {
        settings.memory[i] = all.memory[physical[i]];
        settings.peers[i] = 0;
        for (int j = 0; j < n; j++)
            settings.peers[i] |= (all.peers[physical[i]] >> physical[j] & 1) << j;
    }
}

bool devices_open(void) {
    int physical[MAX_DEVICES];
    int n = visible_devices(physical);
    select_settings(physical, n);
    for (int i = 0; i < n; i++) {
        Device *device = &devices[i];
        device->ordinal = i;
        device->physical = physical[i];
        device->total = settings.memory[i];
        device->primary = context_new(device);
        device->default_pool = device->pool =
            pool_default(CU_MEM_LOCATION_TYPE_DEVICE, i, CU_MEM_ALLOCATION_TYPE_PINNED);
    }
    return n;
}

CUresult device_charge(Device *device, size_t bytes) {
    if (bytes > device->total - device->used)
        pools_give_back(device);
    if (bytes > device->total - device->used)
        return CUDA_ERROR_OUT_OF_MEMORY;
    device->used += bytes;
    return CUDA_SUCCESS;
}

void device_refund(Device *device, size_t bytes) {
    device->used -= bytes;
}

CUresult emulated_cuDriverGetVersion(int *version) {
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = settings.version;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGet(CUdevice *device, int ordinal) {
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetCount(int *count) {
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = settings.devices;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetName(char *name, int length, CUdevice device) {
    if (!name || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, (size_t)length, "Emulated CUDA device %d", device);
    return CUDA_SUCCESS;
}

/* The same for the same device in every process, so that processes can name a device to each other. */
CUresult emulated_cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    if (!uuid)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    uuid_bytes(devices[device].physical, uuid->bytes);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    return emulated_cuDeviceGetUuid_v2(uuid, device);
}

CUresult emulated_cuDeviceGetLuid(char *luid, unsigned int *mask, CUdevice device) {
    (void)luid, (void)mask;
    return device_at(device) ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_DEVICE; /* as the driver on Linux */
}

CUresult emulated_cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = devices[device].total;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    if (!major || !minor)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *major = settings.compute_major;
    *minor = settings.compute_minor;
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
    if (!id || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(id, (size_t)length, "0000:%02X:00.0", devices[device].physical + 1);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetByPCIBusId(CUdevice *device, const char *id) {
    unsigned domain, bus, slot;
    if (!device || !id)
        return CUDA_ERROR_INVALID_VALUE;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3 || domain || slot)
        return CUDA_ERROR_INVALID_DEVICE;
    for (int i = 0; i < settings.devices; i++)
        if (devices[i].physical == (int)bus - 1) {
            *device = i;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_DEVICE;
}

CUresult emulated_cuDeviceGetExecAffinitySupport(int *supported, CUexecAffinityType type, CUdevice device) {
    (void)type;
    if (!supported)
        return CUDA_ERROR_INVALID_VALUE;
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *supported = 0;
    return CUDA_SUCCESS;
}
