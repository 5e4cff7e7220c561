#!/bin/sh
# Build llama.cpp's own server, its RPC server and llama-bench, for `splitinference bench serve --peers --llama-bin OUT`.
#
#   peers.sh SOURCE OUT OBJECTS      SOURCE: the unpacked sdist; OUT: gets programs and libraries; OBJECTS: scratch
#
# The same source, CPU variants and flags as build.sh, so that all that is compared computes with the same kernels. The image of segments has
# none of this. Takes about half an hour of one core.
set -eu
source=$1/vendor/llama.cpp out=$2 objects=$3
sed -i -E '/ggml_add_cpu_backend_variant\((sandybridge|ivybridge|piledriver|cannonlake|cooperlake) /d' "$source/ggml/src/CMakeLists.txt"
cmake -S "$source" -B "$objects" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' -DGGML_RPC=ON \
    -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
cpus=$(sed -n -E 's/.*ggml_add_cpu_backend_variant\(([a-z0-9]+) .*/ggml-cpu-\1/p' "$source/ggml/src/CMakeLists.txt" |
    while read -r name; do ninja -C "$objects" -t query "$name" > /dev/null 2>&1 && echo "$name"; done)
# shellcheck disable=SC2086
ninja -C "$objects" llama-server llama-bench ggml-rpc-server $cpus
mkdir -p "$out"
cp -a "$objects"/bin/lib*.so* "$objects/bin/llama-server" "$objects/bin/llama-bench" "$objects/bin/ggml-rpc-server" "$out/"
find "$out" -type f -exec strip --strip-unneeded {} +
