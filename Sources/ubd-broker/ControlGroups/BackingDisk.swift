import BrokerInterface
import CShims
import Glibc
import SystemCalls
import WorkerProtocol

/// The disk behind a device's file, as io.max names it: a whole disk, also for a partition. The numbers come from the
/// worker; a compromised one can only have another disk limited for its own user.
enum BackingDisk {
    /// "8:0"; nil when the file system has no disk with its device number (btrfs, tmpfs, network).
    /// `writesToFile`: what is written goes to the file of the geometry, also when a block device is behind the disk, too.
    ///
    /// - Throws: when sysfs does not tell.
    static func name(_ geometry: Geometry, writesToFile: Bool = false, sysfs: String) throws(SystemError) -> String? {
        let major, minor: UInt32
        if !writesToFile, geometry.backingMajor != 0 || geometry.backingMinor != 0 {
            (major, minor) = (geometry.backingMajor, geometry.backingMinor)
        } else {
            (major, minor) = (ubd_major(geometry.file.device), ubd_minor(geometry.file.device))
        }
        // File systems without a disk have major number 0.
        guard major != 0 else { return nil }
        let folder = "\(sysfs)/dev/block/\(major):\(minor)"
        guard try isThere({ () throws(SystemError) in _ = try readLink(folder) }) else { return nil }
        guard try isThere({ () throws(SystemError) in _ = try readFile("\(folder)/partition") }) else {
            return "\(major):\(minor)"
        }
        // The link leads to the partition's folder, which is inside the disk's folder.
        return String(decoding: try readFile("\(folder)/../dev").prefix { $0 != 10 }, as: UTF8.self)
    }

    private static func isThere(_ look: () throws(SystemError) -> Void) throws(SystemError) -> Bool {
        do { try look() } catch {
            if error.errno == ENOENT { return false }
            throw error
        }
        return true
    }
}

extension AddOperation {
    /// Sets the I/O limits before the worker may serve. The kernel waits for the requests of a disk when it gets its
    /// first limit, so a child writes the limit. Without it the add fails.
    func limitIO(_ device: ManagedDevice, _ geometry: Geometry, _ next: @escaping () -> Void) {
        guard let groups = broker.groups, let limits = device.info.groupLimits, limits.ioText(disk: "") != nil,
            geometry.file != .none || geometry.backingMajor != 0
        else { return next() }
        let disk: String?
        do {
            disk = try BackingDisk.name(
                geometry, writesToFile: plan.options.layerKind == .scratch, sysfs: broker.sysfs)
        } catch {
            return fail(StartErrors.broken("find the disk that an I/O limit applies to", error))
        }
        guard let disk, let text = limits.ioText(disk: disk) else {
            Log.notice(
                "io-limit", ("device", "\(device.id)"),
                ("what", "its file system has no disk of its own: no I/O limit applies"))
            device.info.groupLimits?.ioBandwidth = nil
            device.info.groupLimits?.ioOperations = nil
            return next()
        }
        let setting = QueueSettings.Setting("io.max", text)
        write([setting], in: groups.folder(of: broker.group(of: device))) { [self] problem in
            guard let problem else { return next() }
            Log.warning("io-limit", ("device", "\(device.id)"), ("setting", text), ("why", problem))
            fail(
                .failed(
                    message: "the I/O limits of the access policy can not be set for disk \(disk): \(problem)",
                    remedy: "try again when that disk answers, or ask the administrator", step: "io.max", errno: nil))
        }
    }
}
