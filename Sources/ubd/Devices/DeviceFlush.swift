import CShims
import Glibc
import SystemCalls

/// Opens a block device exclusively and flushes it, in a child process: on a device that hangs both calls wait for ever
/// and no signal ends them. A thread would not do, since the program cannot end before its threads.
struct DeviceFlush {
    /// The result.
    enum Outcome: Equatable {
        case flushed
        /// Another program or driver has it.
        case busy
        /// Nothing has the node's name, or the kernel has no such disk.
        case noNode
        /// Something else has the node's name: another disk, or no disk.
        case otherFile
        /// A call failed; `step` is "open" or "fsync".
        case failed(step: String, errno: Int32)
        case timedOut
    }

    /// What the node must be: its type (S_IFBLK) and device number (st_rdev in stat(2)).
    struct Identity: Equatable {
        var type: mode_t = S_IFBLK
        var number: dev_t

        /// According to the kernel; nil when it has no disk with the node's last name.
        ///
        /// - Throws: ENOENT when /sys is not mounted.
        static func ofDisk(_ node: String, sysfs: String = "/sys") throws(SystemError) -> Identity? {
            let folder = "\(sysfs)/class/block"
            let path = "\(folder)/\(node.split(separator: "/").last ?? "")/dev"
            let bytes: [UInt8]
            do { bytes = try readFile(path) } catch {
                guard [ENOENT, ENODEV, ENXIO].contains(error.errno) else { throw error }
                // The host has disks, if not this one.
                _ = try namesInFolder(folder)
                return nil
            }
            let numbers = String(decoding: bytes.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
                .split(separator: ":", omittingEmptySubsequences: false).map { UInt32($0) }
            guard numbers.count == 2, let major = numbers[0], let minor = numbers[1] else {
                throw SystemError("read \(path)", EBADMSG)
            }
            return Identity(number: dev_t(ubd_makedev(major, minor)))
        }
    }

    /// Starts the child and waits for it until the deadline. `identity`: nil when the kernel has no such disk.
    static func run(
        node: String, _ identity: Identity?, readOnly: Bool, deadline: Deadline
    ) throws(SystemError) -> Outcome {
        guard let identity else { return .noNode }
        let child = try HelperProcess { (output, null) throws(SystemError) in
            // O_EXCL on a block device: EBUSY when it is mounted, swap, or held by another driver (open(2)).
            let flags = (readOnly ? O_RDONLY : O_RDWR) | O_EXCL | O_CLOEXEC | O_NOCTTY
            let pid = ubd_flush_child(
                node, identity.type, identity.number, flags, readOnly ? 0 : 1, null, output)
            guard pid > 0 else { throw SystemError("start a child", -pid) }
            return pid
        }
        guard let report = try child.bytes(most: 1024, deadline) else { return .timedOut }
        return try outcome(report.bytes)
    }

    static func outcome(_ report: [UInt8]) throws(SystemError) -> Outcome {
        guard report.count == MemoryLayout<ubd_flush_report>.size else { throw SystemError("run a child", EPROTO) }
        let report = report.withUnsafeBytes { $0.loadUnaligned(as: ubd_flush_report.self) }
        switch (Int(report.step), report.error) {
        case (UBD_FLUSH_DONE, 0): return .flushed
        case (UBD_FLUSH_OPEN, EBUSY): return .busy
        case (UBD_FLUSH_OPEN, ENOENT), (UBD_FLUSH_OPEN, ENXIO), (UBD_FLUSH_OPEN, ENODEV): return .noNode
        case (UBD_FLUSH_OPEN, ENOTBLK): return .otherFile
        case (UBD_FLUSH_OPEN, let number): return .failed(step: "open", errno: number)
        case (UBD_FLUSH_SYNC, let number): return .failed(step: "fsync", errno: number)
        default: throw SystemError("run a child", EPROTO)
        }
    }
}
