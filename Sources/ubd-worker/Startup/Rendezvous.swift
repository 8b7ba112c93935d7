import Glibc
import Synchronization
import WorkerProtocol

/// The state that a worker's threads share during its start. Numbers that only grow, and that the threads poll: stage B
/// allows no futex.
package final class Rendezvous: Sendable {
    let queues: Int
    /// Other threads than those of the queues that prepare themselves.
    let helpers: Int
    private let prepared = Atomic<Int>(0)
    private let serving = Atomic<Int>(0)
    private let finished = Atomic<Int>(0)
    /// Queues with lower numbers than this may fetch.
    private let mayFetch = Atomic<Int>(0)
    /// Queues whose thread could still make an unrestricted ring (before Linux 7.0 only the filter forbids it).
    private let unbound = Atomic<Int>(0)
    /// 0: no failure; 1: a thread writes the failure; 2: it can be read.
    private let failureState = Atomic<Int>(0)
    private let failureStep = Atomic<UInt32>(0)
    private let failureErrno = Atomic<Int32>(0)
    private let failureDetail = Atomic<UInt64>(0)

    package init(queues: Int, helpers: Int = 0) {
        self.queues = queues
        self.helpers = helpers
    }

    // For the queues' threads.

    func reportPrepared(canMakeRings: Bool) {
        if canMakeRings { unbound.add(1, ordering: .relaxed) }
        prepared.add(1, ordering: .releasing)
    }

    func waitUntilMayFetch(_ queue: UInt16 = 0) {
        while mayFetch.load(ordering: .acquiring) <= Int(queue) { pause() }
    }

    func reportServing() {
        serving.add(1, ordering: .releasing)
    }

    /// Only the first failure is kept: it is the cause.
    func report(_ failure: WorkerFailure) {
        guard failureState.compareExchange(expected: 0, desired: 1, ordering: .relaxed).exchanged else { return }
        failureStep.store(failure.step.rawValue, ordering: .relaxed)
        failureErrno.store(failure.errno, ordering: .relaxed)
        failureDetail.store(failure.detail, ordering: .relaxed)
        failureState.store(2, ordering: .releasing)
    }

    /// The driver has aborted all tags of a queue. Returns true for the last queue.
    func reportFinished() -> Bool {
        finished.add(1, ordering: .acquiringAndReleasing).newValue == queues
    }

    // For the main thread.

    var someQueueCanMakeRings: Bool { unbound.load(ordering: .relaxed) > 0 }

    func waitUntilPrepared() throws(WorkerFailure) {
        while prepared.load(ordering: .acquiring) < queues + helpers { try pauseUnlessFailed() }
        try throwFailure()
    }

    /// `count`: the number of queues; nil for all.
    func letFetch(_ count: Int? = nil) {
        mayFetch.store(count ?? queues, ordering: .releasing)
    }

    func waitUntilServing(_ count: Int? = nil) throws(WorkerFailure) {
        while serving.load(ordering: .acquiring) < count ?? queues { try pauseUnlessFailed() }
        try throwFailure()
    }

    private func pauseUnlessFailed() throws(WorkerFailure) {
        try throwFailure()
        pause()
    }

    private func throwFailure() throws(WorkerFailure) {
        guard failureState.load(ordering: .acquiring) == 2 else { return }
        throw WorkerFailure(
            WorkerFailure.Step(rawValue: failureStep.load(ordering: .relaxed)) ?? .thread,
            errno: failureErrno.load(ordering: .relaxed), detail: failureDetail.load(ordering: .relaxed))
    }

    private func pause() {
        var time = timespec(tv_sec: 0, tv_nsec: 200_000)
        nanosleep(&time, nil)
    }
}
