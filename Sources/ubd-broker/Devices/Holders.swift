import CShims
import Glibc
import SystemCalls

/// Who uses a block device: mounts, swap, devices on top of it. Which program merely has it open `ubd` finds, as its user.
enum Holders {
    /// A sentence that names a holder which forbids taking the device away; nil when there is none. Never opens it.
    static func holder(of id: UInt32) -> String? {
        let host = Host()
        guard let number = host.text(of: "/sys/block/ublkb\(id)/dev")?.split(whereSeparator: \.isNewline).first else {
            // The kernel has no such disk (any more).
            return nil
        }
        return DeviceHolders(host: host).holder(ofNumber: String(number))
    }

    private struct Host: HolderSources {
        func text(of path: String) -> String? {
            (try? readFile(path, limit: 1 << 24)).map { String(decoding: $0, as: UTF8.self) }
        }

        func entries(of path: String) -> [String] { listFolder(path) }

        func blockDeviceNumber(of path: String) -> String? {
            var status = stat()
            guard stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFBLK else { return nil }
            let number = UInt64(status.st_rdev)
            return "\(ubd_major(number)):\(ubd_minor(number))"
        }
    }
}
