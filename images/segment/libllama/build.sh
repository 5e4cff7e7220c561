#!/bin/sh
# Build libllama with every CPU variant of ggml from llama.cpp's source, as the sdist of llama-cpp-python carries it.
#
#   build.sh SOURCE OUT [BUILD]      SOURCE: the unpacked sdist; OUT: gets lib/, include/ and licenses/; BUILD: scratch (default OUT/../build)
#
# ggml's CPU backends are plug-ins: libllama takes the best that the processor can run, so one image serves old and new ones.
# Needs cmake, ninja and a C++ compiler; takes about half an hour of one core.
set -eu
source=$1/vendor/llama.cpp out=$2 build=${3:-$2/../build}
cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
ninja -C "$build" ${NINJA_FLAGS:-} llama
ninja -C "$build" ${NINJA_FLAGS:-}
mkdir -p "$out/lib" "$out/include" "$out/licenses"
cp -a "$build"/bin/lib*.so* "$out/lib/"
strip --strip-unneeded "$out"/lib/*.so
cp "$source"/include/llama.h "$source"/ggml/include/ggml.h "$source"/ggml/include/ggml-backend.h "$source"/ggml/include/ggml-alloc.h \
   "$source"/ggml/include/ggml-cpu.h "$source"/ggml/include/ggml-opt.h "$source"/ggml/include/gguf.h "$out/include/"
cp "$source/LICENSE" "$out/licenses/LICENSE-llama.cpp"
cp "$1/LICENSE.md" "$out/licenses/LICENSE-llama-cpp-python"
