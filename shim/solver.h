// SPDX-License-Identifier: Apache-2.0
//
// How a chain is solved, as the operators are told: parsed once, from the arguments that all of them share (library.cpp).
#pragma once

#include "operators.h"

#include <array>

namespace deeppcr {

enum class Keep { nothing, states, checkpoints };

struct Name {
    const char *name;
    int value;
};

inline constexpr Name kStructures[] = {{"dense", DPCR_P_DENSE},
                                       {"diagonal", DPCR_P_DIAGONAL},
                                       {"scalar", DPCR_P_SCALAR},
                                       {"identity", DPCR_P_IDENTITY},
                                       {"zero", DPCR_P_ZERO}};
inline constexpr Name kRefreshes[] = {{"adaptive", DPCR_ADAPTIVE}, {"always", DPCR_ALWAYS}};
inline constexpr Name kKeeps[] = {{"nothing", static_cast<int>(Keep::nothing)},
                                  {"states", static_cast<int>(Keep::states)},
                                  {"checkpoints", static_cast<int>(Keep::checkpoints)}};

template <class Value, size_t count>
Value choose(const char *argument, const Name (&names)[count], const std::string &given) {
    for (const Name &name : names)
        if (given == name.name) return static_cast<Value>(name.value);
    std::string known;
    for (const Name &name : names) known += (known.empty() ? "'" : ", '") + std::string(name.name) + "'";
    throw std::invalid_argument(std::string(argument) + " must be one of " + known + ", got '" + given + "'");
}

struct Solver {
    dpcr_plan plan;
    dpcr_newton newton;
    std::vector<unsigned char> frozen; // empty: no step
    Keep keep;

    // None: the default of dpcr_newton_default.
    Solver(const Tensor &z0, int64_t segments, const Text &jacobian, const Text &refresh, Number rtol,
           Number atol, Count max_sweeps, Flag finish, const Flags &frozen, const std::string &keep)
        : plan{segments, 0}, newton(dpcr_newton_default(dtype_of("z0", z0))),
          keep(choose<Keep>("keep", kKeeps, keep)) {
        if (frozen) this->frozen.assign(frozen->begin(), frozen->end());
        if (jacobian) newton.structure = choose<dpcr_structure>("jacobian", kStructures, *jacobian);
        if (refresh) newton.refresh = choose<dpcr_refresh>("refresh", kRefreshes, *refresh);
        newton.rtol = rtol.value_or(newton.rtol);
        newton.atol = atol.value_or(newton.atol);
        newton.max_sweeps = max_sweeps.value_or(newton.max_sweeps);
        newton.finish = finish.value_or(newton.finish);
    }

    void check_frozen(const dpcr_chain &chain) const {
        require(frozen.empty() || static_cast<int64_t>(frozen.size()) == chain.L, [&] {
            return "frozen must be empty or hold " + std::to_string(chain.L)
                   + " flags, one for each step, got " + std::to_string(frozen.size());
        });
    }

    // Of the tensor of kept states, which is (0,B,w) where nothing is.
    std::array<int64_t, 3> kept_shape(const dpcr_chain &chain) const {
        const int64_t count = keep == Keep::nothing  ? 0
                              : keep == Keep::states ? chain.L
                                                     : dpcr_checkpoints(chain.L, plan.segments);
        return {count, chain.B, chain.w};
    }
};

} // namespace deeppcr
