import SystemCalls

/// What all operations on a device have in common: a list of steps, one kernel command at a time, pauses, deadlines, a worker
/// that is killed and may not die, and the moment when somebody else takes the device away. What may happen when stands in
/// `OperationPhase.after`; this class does what the table says.
///
/// An add, a recovery, an upgrade, and so on, owns one of these, lists its steps in the order in which they run, and calls
/// `next` or `go` at the end of each. It calls `finish` when it has no more to do.
final class DeviceOperation<Step: CaseIterable & Equatable> {
    private let loop: EventLoop
    private(set) var phase = OperationPhase.fresh
    /// The present step; nil before the first.
    private(set) var step: Step?
    /// nil once it is over, so that the operation's owner can go.
    private var perform: ((Step) -> Void)?
    private var pause: EventLoop.Timer?
    private var killLimit: EventLoop.Timer?
    /// Whoever took the device away.
    private var released: (() -> Void)?
    /// Whoever ends the operation when its events come out of order.
    private var disordered: (() -> Void)?
    /// Debug builds stop where an event comes out of order.
    private let stopsAtFaults: Bool

    /// `stopsAtFaults`: false in tests of what follows in a release build.
    init(loop: EventLoop, stopsAtFaults: Bool = true) {
        self.loop = loop
        self.stopsAtFaults = stopsAtFaults
    }

    /// It may go on: nobody has taken the device away, and it has not finished.
    var isActive: Bool { phase != .leaving && phase != .over }

    // MARK: Steps

    /// Begins with a step; `perform` carries out each.
    ///
    /// `disordered` is called at most once, from the event loop, after an event that the table refuses. That event was a fault of
    /// ubd, and what should have followed it does not. So the owner must end the operation, as after a timeout.
    func begin(_ first: Step, disordered: @escaping () -> Void, _ perform: @escaping (Step) -> Void) {
        self.disordered = disordered
        self.perform = perform
        go(to: first)
    }

    /// The step that comes after the present one in the list.
    func next() {
        let steps = Array(Step.allCases)
        guard let index = steps.firstIndex(where: { $0 == step }), index + 1 < steps.count else {
            return refuse(.step)
        }
        go(to: steps[index + 1])
    }

    /// Another step than the next one: back, or past some. A pause of the present step ends.
    func go(to step: Step) {
        guard happens(.step) else { return }
        loop.cancel(pause)
        self.step = step
        perform?(step)
    }

    /// Goes on after so many milliseconds, unless the device is taken away meanwhile.
    func wait(milliseconds: Int, then next: @escaping () -> Void) {
        loop.cancel(pause)
        pause = loop.after(milliseconds: milliseconds) { [self] in if happens(.time) { next() } }
    }

    /// Tells after so many milliseconds that something takes long, unless the device is taken away or the limit is cancelled
    /// with `EventLoop.cancel`. Nothing is broken off by it.
    func limit(milliseconds: Int, _ tell: @escaping () -> Void) -> EventLoop.Timer {
        loop.after(milliseconds: milliseconds) { [self] in if happens(.late, .tell) { tell() } }
    }

    // MARK: Commands

    /// Sends a kernel command. `next` hears the answer; when the device was taken away meanwhile, `late` does in its place, to
    /// note what must be undone.
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
            case .proceed: next(answer)
            case .release:
                late?(answer)
                release()
            default: break
            }
        }
    }

    // MARK: The worker

    /// Kills a worker and goes on when it has ended, at once if there is none. `stuck` is told when it has not ended after so
    /// many milliseconds, and its end is still waited for.
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

    /// Kills a worker that holds up what is under way, where that is allowed; false: it must live, or nothing is under way.
    @discardableResult
    func hurry(_ worker: (any Worker)?) -> Bool {
        guard happens(.hurry) else { return false }
        worker?.kill()
        return true
    }

    // MARK: The end

    /// Takes the device away: no step is begun any more, and `next` runs when the kernel has finished the command that it is
    /// at, or at once.
    func abandon(then next: @escaping () -> Void = {}) {
        let effect = take(.abandon)
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

    /// It has no more to do with the device.
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

    /// Debug builds stop here. A broker in use goes on without the event, so that no command is sent at the wrong time, and the
    /// operation's owner ends the operation, so that it does not hang.
    private func refuse(_ event: OperationEvent) {
        Log.error(
            "operation-order", ("phase", "\(phase)"), ("event", "\(event)"),
            ("step", step.map { "\($0)" } ?? "none"))
        if stopsAtFaults { assertionFailure("\(event) in phase \(phase)") }
        guard let disordered else { return }
        self.disordered = nil
        // The caller's stack is in the middle of something. When the device was taken away by then, that ends it.
        loop.later { [self] in if isActive { disordered() } }
    }
}
