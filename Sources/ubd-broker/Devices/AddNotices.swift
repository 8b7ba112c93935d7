import BrokerInterface
import KernelABI
import Targets
import WorkerProtocol

/// The differences between the requested and the actual device, for the user.
extension AddPlan {
    /// The kernel granted less than requested.
    func notices(about info: UblkDeviceInfo) -> [Notice] {
        var notices: [Notice] = []
        if info.queues < queues {
            notices.append(
                Notice(
                    code: "queues",
                    message: "the kernel gave \(info.queues) queues instead of \(queues): one for each CPU at most"
                        + (target.queues == .onePerConnection ? "; there are as many connections" : "")))
        }
        if info.depth < depth {
            notices.append(
                Notice(code: "depth", message: "the kernel gave depth \(info.depth) instead of \(depth)"))
        }
        return notices
    }

    /// Another user's device, which waits for its file, has the same bytes as the new one. `name`: of that device, for
    /// those who may know it.
    func notice(aboutWaiting name: String?) -> Notice {
        Notice(
            code: "shared",
            message: "\(fileName ?? "the file") is also behind \(name ?? "another user's device"), which waits for it: "
                + "once that is recovered, both devices use the same bytes")
    }

    /// The file leads to another disk than requested.
    func notices(about geometry: Geometry, mode: DataMode) -> [Notice] {
        var notices: [Notice] = []
        let name = fileName ?? "the file"
        if geometry.attributes.contains(.fileReadOnly), !readOnly {
            notices.append(
                Notice(code: "read-only", message: "\(name) is not writable, so the device is read-only"))
        }
        if geometry.attributes.contains(.sizeRoundedDown) {
            notices.append(
                Notice(
                    code: "size",
                    message: "the size of \(name) is not a multiple of \(geometry.logicalBlock) bytes: "
                        + "the device has \(geometry.size) bytes, the rest is left out"))
        }
        if geometry.attributes.contains(.directRefused), !options.buffered {
            notices.append(Notice(code: "buffered", message: geometry.directObstacle.text(name, geometry, mode)))
        }
        return notices
    }
}

extension Geometry.DirectObstacle {
    /// Why the page cache is used, and what would change that.
    func text(_ name: String, _ geometry: Geometry, _ mode: DataMode) -> String {
        switch self {
        case .file: "\(name) does not take direct I/O, so the page cache is used"
        case .blocks:
            "direct I/O on \(name) needs larger blocks than the device's \(geometry.logicalBlock) bytes, so the page cache "
                + "is used; --block-size 4096 allows direct I/O, if the content suits such blocks"
        case .largeBlocks:
            "direct I/O on \(name) needs larger blocks than a disk can have, so the page cache is used"
        case .offset:
            "direct I/O on \(name) needs an --offset that is a multiple of its blocks (4096 always is), so the page cache "
                + "is used"
        case .memory:
            "direct I/O on \(name) needs better aligned memory than mode \(mode.rawValue) provides, so the page cache is used; "
                + "see --mode"
        case .fileSystem:
            "\(name) is on FUSE or a file system that is not known to be local, so the page cache is used, not direct I/O"
        }
    }
}

extension RecoveryMode {
    /// The features that a device needs for this mode.
    var features: UblkFeatures {
        switch self {
        case .none: []
        case .queue: [.userRecovery]
        case .reissue: [.userRecovery, .userRecoveryReissue]
        case .fail: [.userRecovery, .userRecoveryFailIO]
        }
    }
}
