// The MPI side of the mpi transport, compiled once against each MPI library and opened at run time. Point to point only: what an MPI
// collective adds up has no promised order.
// The C interface alone: the C++ bindings of old would need a library of their own.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <cstring>

#include "comm/mpi_api.h"

namespace {

static_assert(sizeof(MPI_Request) <= sizeof(OrreryMpiRequest));

MPI_Request& as_mpi(OrreryMpiRequest* request) { return *reinterpret_cast<MPI_Request*>(request); }

int initialize(int* rank, int* size, int64_t* tag_limit) {
  int provided = 0;
  // Several threads of a rank communicate, each call under the transport's lock.
  const int result = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (result != MPI_SUCCESS) return result;
  if (provided < MPI_THREAD_SERIALIZED) return MPI_ERR_OTHER;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, rank);
  MPI_Comm_size(MPI_COMM_WORLD, size);
  int* largest = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest, &found);
  *tag_limit = found != 0 ? static_cast<int64_t>(*largest) + 1 : 32768;
  return 0;
}

void library_name(char* text, int64_t capacity) {
  char version[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(version, &length);
  version[std::strcspn(version, "\n,")] = '\0';
  for (char* tab = version; (tab = std::strchr(tab, '\t')) != nullptr;) *tab = ' ';
  std::strncpy(text, version, static_cast<size_t>(capacity) - 1);
  text[capacity - 1] = '\0';
}

int send(const void* data, int64_t bytes, int peer, int tag, OrreryMpiRequest* request) {
  return MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, MPI_COMM_WORLD, &as_mpi(request)) == MPI_SUCCESS ? kOrreryMpiOk : kOrreryMpiError;
}
int receive(void* data, int64_t bytes, int peer, int tag, OrreryMpiRequest* request) {
  return MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, peer, tag, MPI_COMM_WORLD, &as_mpi(request)) == MPI_SUCCESS ? kOrreryMpiOk : kOrreryMpiError;
}

int test(OrreryMpiRequest* request, int* done, int64_t* received_bytes) {
  MPI_Status status;
  const int result = MPI_Test(&as_mpi(request), done, &status);
  if (result != MPI_SUCCESS) {
    int error_class = 0;
    MPI_Error_class(result, &error_class);
    *done = 1;
    return error_class == MPI_ERR_TRUNCATE ? kOrreryMpiTruncated : kOrreryMpiError;
  }
  if (*done != 0) {
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    *received_bytes = count;
  }
  return kOrreryMpiOk;
}

void abandon(OrreryMpiRequest* request, int is_receive) {
  if (is_receive != 0) MPI_Cancel(&as_mpi(request));
  MPI_Request_free(&as_mpi(request));
}

int all_gather(const void* mine, int bytes, void* all) { return MPI_Allgather(mine, bytes, MPI_BYTE, all, bytes, MPI_BYTE, MPI_COMM_WORLD); }

void finalize() { MPI_Finalize(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrreryMpiApi* orrery_mpi_api(void) {
  static const OrreryMpiApi api = {kOrreryMpiApiVersion, initialize, library_name, send, receive, test, abandon, all_gather, finalize};
  return &api;
}
