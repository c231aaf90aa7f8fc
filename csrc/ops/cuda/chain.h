/* SPDX-License-Identifier: Apache-2.0
 * The chains' part of the CUDA device. */
#ifndef DEEPPCR_OPS_CUDA_CHAIN_H
#define DEEPPCR_OPS_CUDA_CHAIN_H

struct chain_solver;
extern const struct chain_solver dpcr_cuda_chains;
struct update_kernels;
extern const struct update_kernels dpcr_cuda_update;

#endif
