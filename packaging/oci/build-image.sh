#!/bin/sh
# Builds an OCI image (an image layout in one tar file) from a lastkey binary: the binary, the libraries it
# is linked with, and nothing else; no shell, no package manager, no user but root.
#
#   packaging/oci/build-image.sh BINARY IMAGE.tar [REGISTRY/NAME:TAG]
#
# Without a name it is localhost/lastkey:VERSION, which is what `lastkey cluster config` and the Helm chart ask
# for. The registry belongs to the name: containerd keeps an imported image under the name as it is, and the
# kubelet would look for "lastkey:0.1.0" at docker.io/library.
#
# The same binary and libraries give the same image, byte for byte: no times, no owners, no compression. Needs
# tar (GNU), sha256sum and ldd; no container engine, no network. To use it:
#
#   ctr -n k8s.io images import IMAGE.tar        (containerd; k3s: k3s ctr images import)
#   skopeo copy oci-archive:IMAGE.tar docker://registry.example.org/lastkey:0.1.0
#
# It prints the digest, and on standard error the name.
set -eu

fail() { echo "build-image: $1" >&2; exit 1; }
[ $# -ge 2 ] || fail "usage: build-image.sh BINARY IMAGE.tar [REGISTRY/NAME:TAG]"
binary=$1 image=$2
[ -x "$binary" ] || fail "$binary is no program"
if [ $# -ge 3 ]; then
    name=$3
else
    version=$("$binary" --version) || fail "$binary does not say its version; give a name"
    name=localhost/lastkey:${version##* }
fi
case $name in ''|*[!a-z0-9A-Z._:/-]*) fail "'$name' is no image's name" ;; esac
case ${name%%/*} in
    "$name") fail "$name names no registry, and a kubelet would look for it at docker.io: localhost/$name" ;;
    localhost|*.*|*:*) ;;
    *) fail "$name begins with no registry, and a kubelet would look for it at docker.io: localhost/$name" ;;
esac
case ${name#*/} in
    *:?*) ;;
    *) fail "$name has no tag" ;;
esac
case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) fail "unknown machine $(uname -m)" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
export LC_ALL=C
umask 022

# 1. The root file system.
root=$work/root
mkdir -p "$root/usr/local/bin" "$root/etc" "$work/image/blobs/sha256"
cp "$binary" "$root/usr/local/bin/lastkey"
chmod 755 "$root/usr/local/bin/lastkey"
# "lib => /path (0x…)" or "/path (0x…)"; a static binary has none
{ ldd "$binary" 2>/dev/null || true; } | tr -s '[:space:]' '\n' | grep '^/' | sort -u |
    while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
        chmod 755 "$root$library"
    done
echo 'root:x:0:0:root:/:/nologin' > "$root/etc/passwd"
echo 'root:x:0:' > "$root/etc/group"

pack() { tar --sort=name --format=ustar --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$1" -C "$2" .; }
digest() { sha256sum "$1" | cut -d' ' -f1; }
# moves a file to where its digest says, and prints "digest size"
blob() {
    sum=$(digest "$1") size=$(stat -c %s "$1")
    mv "$1" "$work/image/blobs/sha256/$sum"
    echo "$sum $size"
}

# 2. The layer, the configuration, the manifest.
pack "$work/layer" "$root"
read -r layer layer_size <<END
$(blob "$work/layer")
END
printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":{"User":"0:0","Entrypoint":["/usr/local/bin/lastkey"],"WorkingDir":"/","Labels":{"org.opencontainers.image.title":"lastkey"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"packaging/oci/build-image.sh"}]}' \
    "$architecture" "$layer" > "$work/config"
read -r config config_size <<END
$(blob "$work/config")
END
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
    "$config" "$config_size" "$layer" "$layer_size" > "$work/manifest"
read -r manifest manifest_size <<END
$(blob "$work/manifest")
END

# 3. The layout.
printf '{"imageLayoutVersion":"1.0.0"}' > "$work/image/oci-layout"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"%s","io.containerd.image.name":"%s"},"platform":{"architecture":"%s","os":"linux"}}]}' \
    "$manifest" "$manifest_size" "$name" "$name" "$architecture" > "$work/image/index.json"
pack "$work/image.tar" "$work/image"
mv "$work/image.tar" "$image"
echo "$name" >&2
echo "sha256:$manifest"
