import Glibc
import SystemCalls

/// Opens a block device for oneself alone and flushes it, in a helper process: on a device that hangs either call
/// waits for ever and no signal ends it. A thread would not do, since the whole program could not end before it.
struct DeviceFlush {
    /// How it went.
    enum Outcome: Equatable {
        case flushed
        /// Somebody else has it.
        case busy
        /// There is no such block device any more.
        case noNode
        /// A call failed; `step` is "open" or "fsync".
        case failed(step: String, errno: Int32)
        case timedOut
    }

    /// What the helper says on its standard output, as one line: the step and the errno (0: all is done).
    static func report(step: String, errno: Int32) -> String { "\(step) \(errno)\n" }

    /// What the helper does, in its own process.
    static func perform(node: String, readOnly: Bool) -> String {
        // O_EXCL on a block device: EBUSY when it is mounted, swap, or held by another driver (open(2)).
        do {
            let device = try FileDescriptor.open(node, (readOnly ? O_RDONLY : O_RDWR) | O_EXCL)
            guard readOnly || fsync(device.raw) == 0 else { return report(step: "fsync", errno: errno) }
        } catch { return report(step: "open", errno: error.errno) }
        return report(step: "done", errno: 0)
    }

    /// Runs the helper and waits for it, at most until the deadline.
    ///
    /// - Parameter executable: this program.
    static func run(
        executable: String, node: String, readOnly: Bool, deadline: Deadline
    ) throws(SystemError) -> Outcome {
        let arguments = ["ubd", FlushDeviceCommand.name] + (readOnly ? ["--read-only"] : []) + ["--", node]
        let helper = try HelperProcess(executable, arguments)
        guard let line = try helper.output(most: 1024, deadline) else { return .timedOut }
        return try outcome(line.text)
    }

    private static func outcome(_ line: String) throws(SystemError) -> Outcome {
        let words = line.split(whereSeparator: \.isWhitespace)
        guard words.count == 2, let number = Int32(words[1]) else { throw SystemError("run the helper", EPROTO) }
        switch (words[0], number) {
        case ("done", 0): return .flushed
        case ("open", EBUSY): return .busy
        case ("open", ENOENT), ("open", ENXIO), ("open", ENODEV): return .noNode
        case (let step, let number): return .failed(step: String(step), errno: number)
        }
    }
}
