import Glibc
import SystemCalls

/// The block device behind a loop disk, according to sysfs. A worker has no sysfs and reports only the number.
///
/// A ublk disk must not depend on another one: its worker would wait for a worker, in memory reclaim and in deletion,
/// too. The number must be looked up in sysfs, since ublk has no major of its own: its disks share 259 with NVMe and
/// others.
struct BackingDevice {
    /// More levels than any real stack of devices.
    private static let deepest = 16

    private let folder: String

    init(major: UInt32, minor: UInt32, sysfs: String = "/sys") {
        folder = "\(sysfs)/dev/block/\(major):\(minor)"
    }

    /// False for a device that was deleted while somebody had it open.
    var exists: Bool { linkTarget(folder) != nil }

    /// It is a ublk disk, a partition of one, or a device-mapper or MD device above one.
    var liesOnUblk: Bool { Self.liesOnUblk(folder, depth: 0) }

    /// `folder` is a link to the device's folder; the path contains the disk's name, also for a partition.
    private static func liesOnUblk(_ folder: String, depth: Int) -> Bool {
        let target: String
        // A device that is gone lies on nothing. One whose link cannot be read counts as ublk.
        do { target = try readLink(folder) } catch { return error.errno != ENOENT }
        let names = target.split(separator: "/")
        if names.contains(where: { $0.hasPrefix("ublkb") }) { return true }
        // A stack that is too deep to check counts as ublk.
        if depth == deepest { return true }
        // A partition has no slaves; its disk has them.
        return ["slaves", "../slaves"].contains { slaves in
            let below = "\(folder)/\(slaves)"
            do throws(SystemError) {
                return try namesInFolder(below).contains { liesOnUblk("\(below)/\($0)", depth: depth + 1) }
            } catch {
                // An error, for example without free descriptors, also counts as ublk.
                return error.errno != ENOENT
            }
        }
    }
}
