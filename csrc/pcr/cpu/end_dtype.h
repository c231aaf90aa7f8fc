/* SPDX-License-Identifier: Apache-2.0
 * Ends the part of a file that is compiled for one dtype (no include guard: included after each). */
#undef REAL
#undef REAL_BYTES
#undef INT
#undef FN
#undef QUAD
#undef VEC
#undef LANES
