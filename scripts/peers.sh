#!/usr/bin/env bash
# Gets every real peer that the interoperability tests talk to:
#
#   QEMU 10, qemu-storage-daemon      from the backports of the machine's release
#   DPDK (dpdk-testpmd), busybox      from the machine's release
#   a Linux guest kernel, its modules from the backports of the next release; unpacked only
#
# What is unpacked lands in .peers/ at the root of the repository, where manifest.json tells what
# there is. The machine's apt sources stay as they are: every look-up uses a private list, derived
# from them and thrown away afterwards. Quiet when all is well; one line and a non-zero exit when
# not, with the particulars in .peers/install.log. For a newer kernel remove .peers/linux first.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
peers="$root/.peers"
log="$peers/install.log"
kernel_suite=trixie-backports

# Debian packages installed on the machine, and the programs they must have brought.
backports_packages=(qemu-system-x86 qemu-system-common qemu-utils)
release_packages=(
    chromium dpdk dpdk-dev busybox-static iproute2 kmod cpio xz-utils zstd e2fsprogs
    valgrind
)
programs=(
    chromium qemu-system-x86_64 qemu-storage-daemon qemu-img dpdk-testpmd busybox
    ip depmod modprobe cpio xz zstd mke2fs valgrind
)

# Guest modules: those no test can do without, then those taken when the kernel has them as modules
# (one that is missing may be built in).
modules=(virtio_blk virtio_net)
optional_modules=(
    virtio-rng virtio_console qemu_fw_cfg virtio_scsi sd_mod virtio_input virtio_balloon
    virtio_mem virtio_pmem virtio_crypto virtio_snd gpio-virtio i2c-virtio virtio-gpu virtio_rtc
    virtio_can virtio_bt virtio_mmio virtio-iommu virtiofs 9p 9pnet_virtio overlay af_packet
    vmw_vsock_virtio_transport vsock_diag vdpa vduse virtio_vdpa vhost_vdpa vhost_net vhost_vsock
    vhost_iotlb tun tap
)

fail() {
    echo "peers: $* (see .peers/install.log)" >&2
    exit 1
}

logged() {
    echo "+ $*" >>"$log"
    # Not the lock: a service that an installation starts would hold it for ever.
    "$@" >>"$log" 2>&1 9>&-
}

# ------------------------------------------------------------------ is there anything to do?

host_ready() {
    local program version
    for program in "${programs[@]}"; do
        command -v "$program" >/dev/null || return 1
    done
    # The other busybox package is linked dynamically, and cannot run alone in a guest.
    dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q ' installed$' || return 1
    version=$(dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null) || return 1
    dpkg --compare-versions "$version" ge 1:10
}

# The module lists are part of the stamp, so that a longer list unpacks anew.
stamp() {
    printf '%s\n' "layout 2" "$kernel_suite" "${modules[@]}" - "${optional_modules[@]}" |
        sha256sum | cut -d' ' -f1
}

kernel_ready() {
    [[ -s $peers/linux/vmlinuz && -f $peers/linux/stamp ]] &&
        [[ $(<"$peers/linux/stamp") == "$(stamp)" ]]
}

# ------------------------------------------------------------------ apt, through private lists

# Prints "URI SUITE" of the machine's own Debian sources, security and updates included.
machine_suites() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v code="$codename" '$2 == code || index($2, code "-") == 1' | sort -u
}

# Prints the URI that the machine's own release comes from.
release_archive() {
    machine_suites | awk -v code="$codename" '$2 == code { print $1; exit }'
}

# private_apt NAME COMMAND...: an apt command that sees the list NAME alone.
private_apt() {
    local home="$work/$1" command=$2
    shift 2
    "$command" \
        -o Dir::Etc::SourceList="$home/sources.list" -o Dir::Etc::SourceParts="$home/none" \
        -o Dir::Etc::PreferencesParts="$home/none" \
        -o Dir::State::Lists="$home/lists" -o Dir::Cache="$home/cache" \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o Acquire::Retries=2 -o APT::Sandbox::User=root -o DPkg::Lock::Timeout=300 "$@"
}

archive_keyring() {
    dpkg -L debian-archive-keyring | grep -m1 '/debian-archive-keyring\.\(gpg\|pgp\)$'
}

# private_list NAME: makes a list of the "URI SUITE" lines on standard input, and downloads it.
# A keyring older than the suite cannot verify it: that is brought up to date, and tried again.
private_list() {
    local home="$work/$1" keyring uri suite
    mkdir -p "$home"/{none,lists/partial,cache/archives/partial}
    keyring=$(archive_keyring) || return 1
    while read -r uri suite; do
        echo "deb [signed-by=$keyring] $uri $suite main"
    done >"$home/sources.list"
    [[ -s $home/sources.list ]] || return 1
    logged private_apt "$1" apt-get -q update --error-on=any && return
    grep -q NO_PUBKEY "$log" || return 1
    logged apt-get -q update &&
        logged apt-get -q -y --only-upgrade install debian-archive-keyring &&
        logged private_apt "$1" apt-get -q update --error-on=any
}

# ------------------------------------------------------------------ the peers

install_host() {
    { machine_suites && echo "$archive $codename-backports"; } | private_list host ||
        fail "no verified package list of $codename and its backports"
    logged private_apt host apt-get -q -y --no-install-recommends install \
        "${release_packages[@]}" ||
        fail "cannot install ${release_packages[*]}"
    logged private_apt host apt-get -q -y --no-install-recommends -t "$codename-backports" \
        install "${backports_packages[@]}" ||
        fail "cannot install ${backports_packages[*]} from $codename-backports"
    host_ready || fail "installed, yet QEMU 10 or one of these is missing: ${programs[*]}"
}

# Prints the newest VER that has both linux-binary-VER-amd64 and linux-modules-VER-amd64. A plain
# version only: neither the cloud nor the rt flavour, nor the unsigned twin.
newest_kernel() {
    local version newest=
    while read -r version; do
        [[ -n $(private_apt guest apt-cache pkgnames "linux-modules-$version-amd64") ]] || continue
        if [[ -z $newest ]] || dpkg --compare-versions "$version" gt "$newest"; then
            newest=$version
        fi
    done < <(private_apt guest apt-cache pkgnames linux-binary- |
        sed -n 's/^linux-binary-\([0-9][0-9.]*\(+[a-z0-9.]*\)\?\)-amd64$/\1/p')
    [[ -n $newest ]] && echo "$newest"
}

# unpack_module NAME: decompresses a module and all it depends on into $new/modules, and notes the
# order to load them in. modprobe answers with lines "insmod PATH ..." or "builtin NAME".
unpack_module() {
    local kind path name chain=
    modprobe --dirname "$tree" --set-version "$release" --show-depends "$1" \
        >"$work/depends" 2>/dev/null || return 1
    while read -r kind path _; do
        [[ $kind == insmod ]] || continue
        name=$(basename "$path" .ko.xz)
        [[ -f $new/modules/$name.ko ]] || xz -dc "$path" >"$new/modules/$name.ko"
        chain+=" $name"
    done <"$work/depends"
    echo "$1:$chain" >>"$new/modules.order"
}

# unpack_kernel BZIMAGE ELF: takes the kernel proper out of its self-extracting wrapper. QEMU starts
# the ELF file through its PVH entry point, which saves the guest its own unpacking: 1.7 s of TCG.
# Debian compresses with zstd; with anything else there is no ELF file, and the wrapper is started.
# The boot header: setup_sects is at 0x1f1, payload_offset at 0x248, payload_length at 0x24c; the
# payload's last four bytes are its unpacked size.
unpack_kernel() {
    python3 - "$1" <<'PYTHON' | zstd -dcq >"$2" 2>>"$log" || rm -f "$2"
import pathlib, struct, sys

image = pathlib.Path(sys.argv[1]).read_bytes()
offset, length = struct.unpack_from("<II", image, 0x248)
start = (image[0x1F1] + 1) * 512 + offset
sys.stdout.buffer.write(image[start : start + length - 4])
PYTHON
}

install_kernel() {
    local version package module new="$work/linux" tree="$work/tree" release
    echo "$archive $kernel_suite" | private_list guest ||
        fail "no verified package list of $kernel_suite"
    version=$(newest_kernel) ||
        fail "$kernel_suite has no linux-binary-VER-amd64 with a linux-modules-VER-amd64"
    release=$version-amd64
    mkdir -p "$work/debs" "$tree/lib" "$new/modules"
    # modprobe looks into lib/modules of the folder it is given.
    ln -s ../usr/lib/modules "$tree/lib/modules"
    for package in "linux-binary-$release" "linux-modules-$release"; do
        (cd "$work/debs" && logged private_apt guest apt-get -q download "$package") ||
            fail "cannot download $package"
        logged dpkg -x "$work/debs/${package}_"*.deb "$tree" || fail "cannot unpack $package"
    done
    logged depmod --basedir "$tree" "$release" || fail "cannot index the modules of $release"
    cp "$tree/usr/lib/modules/$release/vmlinuz" "$new/" 2>>"$log" ||
        fail "linux-binary-$release has no vmlinuz"
    unpack_kernel "$new/vmlinuz" "$new/vmlinux"
    for module in "${modules[@]}"; do
        unpack_module "$module" || fail "Linux $release has no module $module"
    done
    for module in "${optional_modules[@]}"; do
        unpack_module "$module" || true
    done
    echo "$release" >"$new/release"
    stamp >"$new/stamp"
    rm -rf "$peers/linux"
    mv "$new" "$peers/linux"
}

write_manifest() {
    python3 - "$root" <<'PYTHON'
import json, pathlib, subprocess, sys

root = pathlib.Path(sys.argv[1])
linux = root / ".peers" / "linux"


def installed(package: str, program: str) -> dict[str, str]:
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    version = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    return {"version": version, "program": program}


image = linux / "vmlinux"
if not image.exists():
    image = linux / "vmlinuz"
load_order = {}
for line in (linux / "modules.order").read_text().splitlines():
    name, _, chain = line.partition(":")
    load_order[name] = chain.split()

manifest = {
    "qemu": installed("qemu-system-x86", "qemu-system-x86_64"),
    "qemu-storage-daemon": installed("qemu-system-common", "qemu-storage-daemon"),
    "dpdk": installed("dpdk-dev", "dpdk-testpmd"),
    "busybox": installed("busybox-static", "busybox"),
    "chromium": installed("chromium", "chromium"),
    "linux": {
        "version": (linux / "release").read_text().strip(),
        "kernel": str(image.relative_to(root)),
        "modules": str((linux / "modules").relative_to(root)),
        "load_order": load_order,
    },
}
target = root / ".peers" / "manifest.json"
partial = target.with_suffix(".partial")
partial.write_text(json.dumps(manifest, indent=2) + "\n")
partial.replace(target)
PYTHON
}

# ------------------------------------------------------------------ main

mkdir -p "$peers"
# One run at a time: a second one waits, and then finds all in place.
exec 9>"$peers/lock"
flock 9

if host_ready && kernel_ready && [[ -s $peers/manifest.json ]]; then
    exit 0
fi

: >"$log"
[[ $(id -u) == 0 ]] || fail "installing the peers needs root"
work=$(mktemp -d "$peers/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
archive=$(release_archive)
# Before the first update of a machine apt tells nothing of its sources.
if [[ -z $archive ]]; then
    logged apt-get -q update || fail "apt-get update failed"
    archive=$(release_archive)
fi
[[ -n $archive ]] || fail "the machine's apt sources do not name the release '$codename'"

host_ready || install_host
kernel_ready || install_kernel
write_manifest || fail "cannot write .peers/manifest.json"
