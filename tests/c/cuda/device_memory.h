/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays on the current CUDA device for the backend of tests/c/support/backend.h.  Everything is on one stream;
 * an error of CUDA's ends the program.
 */
#ifndef DEEPPCR_TEST_DEVICE_MEMORY_H
#define DEEPPCR_TEST_DEVICE_MEMORY_H

#include "support/backend.h"

/* Why there is no device, or NULL. */
const char *device_memory_reason(void);

void *device_memory_allocate(size_t bytes);
void device_memory_release(void *data);
void device_memory_to_device(void *device, const void *host, size_t bytes);
void device_memory_to_host(void *host, const void *device, size_t bytes);
/* compute-sanitizer sees accesses outside of arrays, not inside: nothing is fenced. */
void device_memory_fence(void *data, size_t bytes, bool closed);
void *device_memory_stream(mode m);

#endif
