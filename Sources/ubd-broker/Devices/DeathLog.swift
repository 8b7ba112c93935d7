import SystemCalls

/// How often a device's workers died lately: once is an accident and mended at once, often is a fault that no new worker
/// mends.
struct DeathLog {
    /// More deaths than this within the window: no further worker is tried.
    static let most = 8
    /// Milliseconds.
    static let longestPause = 10_000

    private var times: [UInt64] = []

    /// Notes a death; those more than `window` seconds ago are forgotten.
    mutating func add(window: Int, now: UInt64 = monotonicNanoseconds()) {
        times.append(now)
        times.removeAll { now - $0 > UInt64(window) * 1_000_000_000 }
    }

    /// Deaths within the window.
    var count: Int { times.count }

    var isTooMany: Bool { times.count > DeathLog.most }

    /// Milliseconds to wait before the next worker: none after a first death, then twice as long each time.
    var pauseBeforeNext: Int {
        guard times.count > 1 else { return 0 }
        return min(50 << min(times.count - 2, 16), DeathLog.longestPause)
    }
}
