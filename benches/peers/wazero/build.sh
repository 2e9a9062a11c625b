#!/bin/bash
# Builds the wazero peer from Debian packages alone: Go's own module proxy is not needed, nothing is installed on the
# machine. Idempotent: what is there already is not fetched again. Needs apt and dpkg, on amd64 or arm64 (where wazero has its compiler).
#
#   build.sh [DIR]    leaves DIR/wazero-server; DIR is /tmp/gopeer unless told
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-/tmp/gopeer}
root=$dir/root
mkdir -p "$dir"/{apt/etc/apt.conf.d,apt/etc/preferences.d,apt/state/lists/partial,apt/cache/archives/partial,debs,own/src} "$root"

# 1. An apt of our own that reads sid, so that the machine's sources stay as they are. Signatures are checked against
#    the machine's Debian keyring.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] http://deb.debian.org/debian sid main" > "$dir/apt/etc/sources.list"
apt=(-o Dir::Etc="$dir/apt/etc" -o Dir::State="$dir/apt/state" -o Dir::State::status=/var/lib/dpkg/status
     -o Dir::Cache="$dir/apt/cache" -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=false)

# 2. What is needed: the toolchain, and the sources of what main.go imports, directly or not. Not the packages'
#    declared dependencies, which are those of all of gRPC (xDS, OpenTelemetry, the cloud clients: hundreds).
packages=(golang-1.27-go golang-1.27-src
          golang-github-tetratelabs-wazero-dev
          golang-google-grpc-dev golang-google-protobuf-dev golang-google-genproto-dev
          golang-github-golang-protobuf-1-5-dev
          golang-golang-x-net-dev golang-golang-x-sys-dev golang-golang-x-text-dev)

# 3. Download and unpack each that is not there yet. The stamp is written last, so a broken download is tried again.
updated=
for package in "${packages[@]}"; do
  [ -e "$dir/debs/$package.done" ] && continue
  [ -n "$updated" ] || { apt-get "${apt[@]}" -q update; updated=yes; }
  rm -f "$dir/debs/${package}_"*.deb
  (cd "$dir/debs" && apt-get "${apt[@]}" -q download "$package")
  dpkg -x "$dir/debs/${package}_"*.deb "$root"
  touch "$dir/debs/$package.done"
done

# 4. Build with the defaults that anybody would: optimised, no tags. GOPATH mode, because Debian's library packages
#    are laid out for it; GOTOOLCHAIN and GOPROXY make sure that nothing else is fetched. Without cgo, since no C
#    compiler is needed then, and the server uses none.
export GOROOT=$root/usr/lib/go-1.27 GOPATH=$root/usr/share/gocode:$dir/own GO111MODULE=off GOTOOLCHAIN=local \
       GOPROXY=off GOFLAGS= GOCACHE=$dir/gocache CGO_ENABLED=0
source=$here/main.go
[ -e "$source" ] || source=$here/wazero/main.go
"$GOROOT/bin/go" build -o "$dir/wazero-server" "$source"
"$GOROOT/bin/go" version "$dir/wazero-server"
