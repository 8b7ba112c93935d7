import Glibc
import SystemCalls

/// Workers without a record. If their broker died before it wrote one, they end at once by themselves; if the record
/// was damaged, they keep serving. Their uids stay in use until they end.
final class Orphans {
    private final class Orphan {
        let process: ProcessHandle
        var watch: EventLoop.Watch?

        init(_ process: consuming ProcessHandle) { self.process = process }
    }

    private let loop: EventLoop
    private let handle: (Int32) throws(SystemError) -> ProcessHandle
    private var orphans: [Int32: Orphan] = [:]

    init(
        loop: EventLoop,
        handle: @escaping (Int32) throws(SystemError) -> ProcessHandle = { (pid) throws(SystemError) in
            try ProcessHandle(pid: pid)
        }
    ) {
        self.loop = loop
        self.handle = handle
    }

    /// Calls `ended` when the process has ended; at once when it is gone already. A process that cannot be watched counts
    /// as one that has not ended.
    func watch(_ pid: Int32, ended: @escaping () -> Void) {
        do throws(SystemError) {
            let orphan = Orphan(try handle(pid))
            orphans[pid] = orphan
            orphan.watch = try loop.watch(orphan.process.file.raw, .readable) { [unowned self] _ in
                if let watch = orphans.removeValue(forKey: pid)?.watch { loop.unwatch(watch) }
                ended()
            }
        } catch {
            if error.saysProcessIsGone { return ended() }
            Log.warning("worker-without-record", ("worker", "\(pid)"), ("why", "its end can not be watched: \(error)"))
        }
    }
}
