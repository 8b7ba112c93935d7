import Glibc
import SystemCalls

/// The block device behind a loop disk, as sysfs knows it. A worker has no sysfs, so it only tells the number.
///
/// A ublk disk must not lie on another: its worker would wait for a worker, in memory reclaim and in deletion too. What the
/// number means has to be looked up, since ublk has no major of its own: its disks share 259 with NVMe and others.
struct BackingDevice {
    /// Deeper stacks of devices than any host has.
    private static let deepest = 16

    private let folder: String

    init(major: UInt32, minor: UInt32, sysfs: String = "/sys") {
        folder = "\(sysfs)/dev/block/\(major):\(minor)"
    }

    /// False for a device that was deleted while somebody had it open.
    var exists: Bool { linkTarget(folder) != nil }

    /// It is a ublk disk, a partition of one, or a device-mapper or MD device with one below it.
    var liesOnUblk: Bool { Self.liesOnUblk(folder, depth: 0) }

    /// `folder` is a link to the device's own folder, whose path tells the driver's name of a disk also for its partitions.
    private static func liesOnUblk(_ folder: String, depth: Int) -> Bool {
        guard let target = linkTarget(folder) else { return false }
        let names = target.split(separator: "/")
        if names.contains(where: { $0.hasPrefix("ublkb") }) { return true }
        // What cannot be seen through is taken for the worst.
        if depth == deepest { return true }
        // A partition has no slaves, the disk above it has.
        return ["slaves", "../slaves"].contains { slaves in
            let below = "\(folder)/\(slaves)"
            do throws(SystemError) {
                return try namesInFolder(below).contains { liesOnUblk("\(below)/\($0)", depth: depth + 1) }
            } catch {
                // Without descriptors, for instance, nobody can tell.
                return error.errno != ENOENT
            }
        }
    }
}
