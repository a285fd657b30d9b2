// `orrery plan schedule`: a pipeline's step x rank grid, without a model and without running it.
#pragma once

namespace CLI {
class App;
}

namespace orrery {

void add_plan_schedule(CLI::App& plan, int& exit_code);

}  // namespace orrery
