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
        /// The block device no longer exists.
        case noNode
        /// A call failed; `step` is "open" or "fsync".
        case failed(step: String, errno: Int32)
        case timedOut
    }

    /// Starts the child and waits for it until the deadline.
    static func run(node: String, readOnly: Bool, deadline: Deadline) throws(SystemError) -> Outcome {
        let child = try HelperProcess { (output, null) throws(SystemError) in
            // O_EXCL on a block device: EBUSY when it is mounted, swap, or held by another driver (open(2)).
            let flags = (readOnly ? O_RDONLY : O_RDWR) | O_EXCL | O_CLOEXEC | O_NOCTTY
            let pid = ubd_flush_child(node, flags, readOnly ? 0 : 1, null, output)
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
        case (UBD_FLUSH_OPEN, let number): return .failed(step: "open", errno: number)
        case (UBD_FLUSH_SYNC, let number): return .failed(step: "fsync", errno: number)
        default: throw SystemError("run a child", EPROTO)
        }
    }
}
