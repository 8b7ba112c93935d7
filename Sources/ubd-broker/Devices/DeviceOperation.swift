import SystemCalls

/// The common part of all operations on a device: a list of steps, one kernel command at a time, pauses, deadlines, the
/// kill of a worker that may not die, and the moment when another operation takes the device away.
/// `OperationPhase.after` defines which event is allowed when; this class executes that table.
///
/// An add, a recovery, an upgrade and so on own one of these, list their steps in order, and call `next` or `go` at the
/// end of each step. They call `finish` when they have no more to do.
final class DeviceOperation<Step: CaseIterable & Equatable> {
    private let loop: EventLoop
    private(set) var phase = OperationPhase.fresh
    /// The current step; nil before the first.
    private(set) var step: Step?
    /// nil when the operation is over, so that its owner can be freed.
    private var perform: ((Step) -> Void)?
    private var pause: EventLoop.Timer?
    private var killLimit: EventLoop.Timer?
    /// Called for the operation that took the device away.
    private var released: (() -> Void)?
    /// Replaces the continuation of the command that is in the kernel.
    private var otherWay: (() -> Void)?
    /// Ends the operation after an event out of order.
    private var disordered: (() -> Void)?
    /// Debug builds stop at an event out of order.
    private let stopsAtFaults: Bool

    /// `stopsAtFaults`: false in tests of a release build's behaviour.
    init(loop: EventLoop, stopsAtFaults: Bool = true) {
        self.loop = loop
        self.stopsAtFaults = stopsAtFaults
    }

    /// The operation may go on: it has not finished, and nobody has taken the device away.
    var isActive: Bool { phase != .leaving && phase != .over }

    // MARK: Steps

    /// Begins with a step; `perform` executes each step.
    ///
    /// `disordered` is called at most once, from the event loop, after an event that the table refuses. Such an event
    /// is a bug in ubd, and whatever should have followed it does not happen. So the owner must end the operation, as
    /// after a timeout.
    func begin(_ first: Step, disordered: @escaping () -> Void, _ perform: @escaping (Step) -> Void) {
        self.disordered = disordered
        self.perform = perform
        go(to: first)
    }

    /// Begins the next step in the list.
    func next() {
        let steps = Array(Step.allCases)
        guard let index = steps.firstIndex(where: { $0 == step }), index + 1 < steps.count else {
            return refuse(.step)
        }
        go(to: steps[index + 1])
    }

    /// Begins another step: an earlier or a later one. Ends a pause of the current step.
    func go(to step: Step) {
        guard happens(.step) else { return }
        loop.cancel(pause)
        self.step = step
        perform?(step)
    }

    /// Continues after a pause, unless the device is taken away meanwhile.
    func wait(milliseconds: Int, then next: @escaping () -> Void) {
        loop.cancel(pause)
        pause = loop.after(milliseconds: milliseconds) { [self] in if happens(.time) { next() } }
    }

    /// Calls `tell` after this time to report a delay, unless the device is taken away or the limit is cancelled with
    /// `EventLoop.cancel`. It interrupts nothing.
    func limit(milliseconds: Int, _ tell: @escaping () -> Void) -> EventLoop.Timer {
        loop.after(milliseconds: milliseconds) { [self] in if happens(.late, .tell) { tell() } }
    }

    /// The present step lacks what an earlier one should have left. That is a fault of ubd as well, and ends the operation in
    /// the same way as an event that the table refuses.
    func lacks(_ what: String) { disorder("without \(what)") }

    // MARK: Commands

    /// Sends a kernel command. `next` gets the answer. If the device was taken away meanwhile, `late` gets it instead,
    /// to note what must be undone.
    func command<Content>(
        _ submit: (@escaping Driver.Completion<Content>) -> Void, late: Driver.Completion<Content>? = nil,
        then next: @escaping Driver.Completion<Content>
    ) {
        send(.command, submit, late, next)
    }

    /// Sends a command during which the worker must live.
    func commit<Content>(
        _ submit: (@escaping Driver.Completion<Content>) -> Void, then next: @escaping Driver.Completion<Content>
    ) {
        send(.commit, submit, nil, next)
    }

    private func send<Content>(
        _ event: OperationEvent, _ submit: (@escaping Driver.Completion<Content>) -> Void,
        _ late: Driver.Completion<Content>?, _ next: @escaping Driver.Completion<Content>
    ) {
        guard happens(event) else { return }
        loop.cancel(pause)
        submit { [self] answer in
            switch take(.answer) {
            case .proceed:
                guard let otherWay else { return next(answer) }
                self.otherWay = nil
                otherWay()
            case .release:
                late?(answer)
                release()
            default: break
            }
        }
    }

    /// Goes another way, unless the device is taken away: at once, or when the kernel has answered the current command,
    /// instead of that command's continuation. The first call during a command counts.
    func turn(_ next: @escaping () -> Void) {
        guard isActive else { return }
        if phase == .commanding || phase == .committing { otherWay = otherWay ?? next } else { next() }
    }

    // MARK: The worker

    /// Kills a worker and continues when it has ended, or at once if there is none. `stuck` is called when it has not
    /// ended after `milliseconds`; the operation still waits for its end.
    func kill(
        _ worker: (any Worker)?, milliseconds: Int, stuck: @escaping () -> Void, then next: @escaping () -> Void
    ) {
        guard let worker, worker.end == nil else { return isActive ? next() : () }
        guard happens(.kill) else { return }
        loop.cancel(pause)
        worker.setHandler { [self] event in
            guard case .ended = event, happens(.ended) else { return }
            loop.cancel(killLimit)
            next()
        }
        worker.kill()
        killLimit = limit(milliseconds: milliseconds, stuck)
    }

    /// Kills a worker that delays the current command, where that is allowed. Returns false when the worker must live
    /// or no operation is running.
    @discardableResult
    func hurry(_ worker: (any Worker)?) -> Bool {
        guard happens(.hurry) else { return false }
        worker?.kill()
        return true
    }

    // MARK: The end

    /// Takes the device away: no further step begins. `next` is called at once, or when the kernel has completed the
    /// current command.
    func abandon(then next: @escaping () -> Void = {}) {
        let effect = take(.abandon)
        otherWay = nil
        loop.cancel(pause)
        loop.cancel(killLimit)
        switch effect {
        case .release:
            (perform, disordered) = (nil, nil)
            next()
        case .wait:
            let earlier = released
            released = {
                earlier?()
                next()
            }
        default: break
        }
    }

    /// The operation has no more to do with the device.
    func finish() {
        guard happens(.finish) else { return }
        loop.cancel(pause)
        loop.cancel(killLimit)
        (perform, disordered) = (nil, nil)
    }

    private func release() {
        let released = released
        (self.released, perform, disordered) = (nil, nil, nil)
        released?()
    }

    // MARK: The table

    private func happens(_ event: OperationEvent, _ effect: OperationEffect = .proceed) -> Bool {
        take(event) == effect
    }

    private func take(_ event: OperationEvent) -> OperationEffect {
        let (next, effect) = phase.after(event)
        if effect == .refuse { refuse(event) }
        phase = next
        return effect
    }

    /// Debug builds stop here. A release build ignores the event, so that no command is sent at the wrong time, and the
    /// owner ends the operation, so that it does not hang.
    private func refuse(_ event: OperationEvent) {
        if stopsAtFaults { assertionFailure("\(event) in phase \(phase)") }
        disorder("\(event)")
    }

    private func disorder(_ event: String) {
        Log.error(
            "operation-order", ("phase", "\(phase)"), ("event", event), ("step", step.map { "\($0)" } ?? "none"))
        guard let disordered else { return }
        self.disordered = nil
        // Later, since the caller's stack is in the middle of something. By then the device may have been taken away.
        loop.later { [self] in if isActive { disordered() } }
    }
}
