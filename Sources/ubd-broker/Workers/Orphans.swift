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
    private var orphans: [Int32: Orphan] = [:]

    init(loop: EventLoop) {
        self.loop = loop
    }

    /// Calls `ended` when the process has ended; at once when it is gone already.
    func watch(_ pid: Int32, ended: @escaping () -> Void) {
        guard let process = try? ProcessHandle(pid: pid) else { return ended() }
        let orphan = Orphan(process)
        orphans[pid] = orphan
        orphan.watch = try? loop.watch(orphan.process.file.raw, .readable) { [unowned self] _ in
            if let watch = orphans.removeValue(forKey: pid)?.watch { loop.unwatch(watch) }
            ended()
        }
    }
}
