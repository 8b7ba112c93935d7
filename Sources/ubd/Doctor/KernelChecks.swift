import SystemCalls

/// The checks of the kernel.
enum KernelChecks {
    static func all(_ host: any Machine) -> [Check] {
        let module = module(host)
        return [release(host), module, control(host, module), ioUring(host)]
    }

    /// Major and minor number of a release such as "6.12.95+deb12-cloud-amd64".
    static func version(of release: String) -> (major: Int, minor: Int)? {
        let parts = release.split(separator: ".", maxSplits: 2)
        guard parts.count >= 2, let major = Int(parts[0]),
            let minor = Int(parts[1].prefix { $0.isASCII && $0.isNumber })
        else { return nil }
        return (major, minor)
    }

    private static func release(_ host: any Machine) -> Check {
        let release = host.kernelRelease
        guard let version = version(of: release) else {
            return .warning("kernel", "release '\(release)' is not understood", remedy: "ubd needs Linux 6.4 or newer")
        }
        if let bad = KnownBadKernel.entry(for: release) {
            return .missing(
                "kernel", "Linux \(release) is known to be bad: \(bad.fault) (\(bad.report))",
                remedy: "\(bad.remedy); or start ubd-broker with --allow-bad-kernel")
        }
        if version < (6, 0) {
            return .missing(
                "kernel", "Linux \(release) has no ublk", remedy: "boot Linux 6.12 or newer (6.12 and 7.3 are tested)")
        }
        if version < (6, 4) {
            return .missing(
                "kernel", "Linux \(release) has only ublk's old command numbers, which ubd does not use by default",
                remedy: "boot Linux 6.12 or newer (6.12 and 7.3 are tested), or start ubd-broker with --legacy-opcodes")
        }
        if version < (6, 12) {
            return .warning(
                "kernel", "Linux \(release) is older than the kernels that ubd is tested with",
                remedy: "use Linux 6.12 or newer where you can (6.12 and 7.3 are tested)")
        }
        return .ok("kernel", "Linux \(release)")
    }

    private static func module(_ host: any Machine) -> Check {
        if host.kind(of: "/sys/module/ublk_drv", followsLinks: true) != nil {
            return .ok("module", "ublk_drv is loaded")
        }
        if host.hasPrivateDev, host.kind(of: "/lib/modules", followsLinks: true) == nil {
            return .missing(
                "module", "ublk_drv is not loaded, and this is a container without modules",
                remedy: "run 'modprobe ublk_drv' as root on the host")
        }
        let directory = "/lib/modules/\(host.kernelRelease)"
        let available = ["modules.dep", "modules.builtin"].contains { name in
            host.text(of: "\(directory)/\(name)")?.contains("/ublk_drv.ko") ?? false
        }
        if available {
            return .missing(
                "module", "ublk_drv is there but not loaded",
                remedy: "run 'modprobe ublk_drv' as root (ubd's modules-load.d file does it at boot)")
        }
        if host.kind(of: directory, followsLinks: true) == nil {
            return .missing(
                "module", "ublk_drv is not loaded, and there is no \(directory) to load it from",
                remedy: "reboot if the kernel was just replaced, else install its modules")
        }
        return .missing(
            "module", "this kernel is built without ublk_drv (CONFIG_BLK_DEV_UBLK)",
            remedy: "install a kernel with it: on Debian 12 'apt install -t bookworm-backports linux-image-amd64'")
    }

    private static func control(_ host: any Machine, _ module: Check) -> Check {
        switch host.kind(of: "/dev/ublk-control", followsLinks: true) {
        case .characterDevice: .ok("control", "/dev/ublk-control is there")
        case nil where module.status == .ok && host.hasPrivateDev:
            .missing(
                "control", "there is no /dev/ublk-control in this /dev, which is a container's own",
                remedy: "give the container the host's /dev and /sys ('-v /dev:/dev'), or run ubd on the host")
        case nil where module.status == .ok:
            .missing(
                "control", "there is no /dev/ublk-control",
                remedy: "run 'modprobe -r ublk_drv && modprobe ublk_drv' as root")
        // The module creates it.
        case nil: .missing("control", "there is no /dev/ublk-control", remedy: module.remedy ?? "")
        case .some:
            .missing(
                "control", "/dev/ublk-control is no character device",
                remedy: "remove it and run 'modprobe -r ublk_drv && modprobe ublk_drv' as root")
        }
    }

    /// kernel.io_uring_disabled, since Linux 6.6: 0 for all, 1 for one group (and CAP_SYS_ADMIN), 2 for nobody.
    private static func ioUring(_ host: any Machine) -> Check {
        func setting(_ name: String) -> Int64? {
            host.text(of: "/proc/sys/kernel/\(name)").flatMap {
                Int64($0.split(whereSeparator: \.isWhitespace).first ?? "")
            }
        }
        switch setting("io_uring_disabled") {
        case nil, 0: return .ok("io_uring", "io_uring may be used")
        case 1:
            guard let group = host.group(named: "ubd-worker") else {
                return .missing(
                    "io_uring", "kernel.io_uring_disabled is 1, and there is no group ubd-worker to allow",
                    remedy: "run 'systemd-sysusers' or 'groupadd --system ubd-worker' as root")
            }
            if setting("io_uring_group") == Int64(group.gid) {
                return .ok("io_uring", "io_uring is kept for group ubd-worker")
            }
            return .missing(
                "io_uring", "kernel.io_uring_disabled is 1 and kernel.io_uring_group is not ubd-worker",
                remedy: "run 'sysctl kernel.io_uring_group=\(group.gid)' as root, and put it into /etc/sysctl.d")
        case 2:
            return .missing(
                "io_uring", "kernel.io_uring_disabled is 2: no ublk server can run here",
                remedy: "run 'sysctl kernel.io_uring_disabled=0' as root (or 1, and name group ubd-worker)")
        case .some(let other):
            return .warning(
                "io_uring", "kernel.io_uring_disabled is \(other), which ubd does not know",
                remedy: "see the kernel's Documentation/admin-guide/sysctl/kernel.rst")
        }
    }
}
