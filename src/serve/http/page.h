// The page at /: chat, live metrics, queue and cache, one HTML text in the binary. It talks to this server only.
#pragma once

#include <string_view>

namespace orrery {

std::string_view page_html();

}  // namespace orrery
