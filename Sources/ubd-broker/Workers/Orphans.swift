import Glibc
import SystemCalls

/// Workers that no record tells of: the broker that started them died before it had written one, and then they end by
/// themselves at once; or the record was damaged, and then they serve on. Nobody else may get their uids before they end.
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
