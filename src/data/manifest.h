// manifest.json of a folder of shards: see DataManifest in data_builder.h and docs/formats.md.
#pragma once

#include <string>

#include "data/data_builder.h"

namespace orrery {

/// Writes folder/manifest.json and syncs it. Errors  kIo.
void save_manifest(const DataManifest& manifest, const std::string& folder);
/// Errors  kCorruptData, naming `name`.
DataManifest parse_manifest(std::string_view text, const std::string& name);

}  // namespace orrery
