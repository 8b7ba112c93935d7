/// Where an operation on a device stands. What may happen next depends on nothing else: `after` is the whole table.
enum OperationPhase: CaseIterable {
    /// Not begun.
    case fresh
    /// At a step that waits for no kernel command: for a time, a worker's word, or somebody else's answer.
    case running
    /// A command is in the kernel.
    case commanding
    /// START_DEV or END_USER_RECOVERY is in the kernel. The worker must live until it has ended
    /// (docs/kernel-facts.md#start-race).
    case committing
    /// The worker was killed, and its end is waited for.
    case killing
    /// That end did not come in time. It is still waited for.
    case stuck
    /// Somebody takes the device away from the operation, but its command is still in the kernel.
    case leaving
    /// The device is somebody else's, or nobody's.
    case over
}

/// What happens to an operation.
enum OperationEvent: CaseIterable {
    /// Its next step begins, the first included.
    case step
    /// A pause that it made has passed.
    case time
    /// It sends a command,
    case command
    /// or one during which the worker must live.
    case commit
    /// The kernel has answered.
    case answer
    /// It kills its worker, to go on without it.
    case kill
    /// It kills its worker so that what it waits for ends sooner.
    case hurry
    /// The worker that it killed has ended.
    case ended
    /// What it waits for takes longer than it should.
    case late
    /// Somebody takes the device away.
    case abandon
    /// It has no more to do.
    case finish
}

/// What follows from an event.
enum OperationEffect {
    /// It is done, or what waited for it goes on.
    case proceed
    /// Whoever has to know is told; what is waited for goes on.
    case tell
    /// The answer is noted for the undoing, no step follows, and whoever took the device away goes on.
    case release
    /// Whoever takes the device away waits for the kernel's answer.
    case wait
    /// Nothing: it comes too late, or there is nothing to do.
    case ignore
    /// It is a fault of the program and not done. Whoever runs the operation ends it.
    case refuse
}

extension OperationPhase {
    /// The transition table.
    func after(_ event: OperationEvent) -> (phase: OperationPhase, effect: OperationEffect) {
        switch (self, event) {
        case (.fresh, .step), (.running, .step), (.running, .time): (.running, .proceed)
        case (.running, .command): (.commanding, .proceed)
        case (.running, .commit): (.committing, .proceed)
        case (.running, .kill): (.killing, .proceed)
        case (.commanding, .answer), (.committing, .answer): (.running, .proceed)
        case (.killing, .ended), (.stuck, .ended): (.running, .proceed)

        // A command that waits for a worker ends with it. One that must not lose it is waited for.
        case (.running, .hurry), (.commanding, .hurry), (.killing, .hurry), (.stuck, .hurry): (self, .proceed)
        case (.fresh, .hurry), (.committing, .hurry), (.leaving, .hurry), (.over, .hurry): (self, .ignore)

        case (.running, .late), (.commanding, .late), (.committing, .late): (self, .tell)
        case (.killing, .late): (.stuck, .tell)
        case (.stuck, .late): (.stuck, .tell)

        case (.fresh, .abandon), (.running, .abandon), (.killing, .abandon), (.stuck, .abandon): (.over, .release)
        case (.commanding, .abandon), (.committing, .abandon): (.leaving, .wait)
        case (.leaving, .answer): (.over, .release)
        // A second one waits for the same answer.
        case (.leaving, .abandon): (.leaving, .wait)
        case (.over, .abandon): (.over, .release)

        case (.fresh, .finish), (.running, .finish), (.stuck, .finish): (.over, .proceed)

        // What was under way when the device was taken away comes to its own end, and is not heard.
        case (.leaving, .step), (.leaving, .time), (.leaving, .kill), (.leaving, .ended), (.leaving, .late),
            (.leaving, .finish):
            (.leaving, .ignore)
        case (.over, .step), (.over, .time), (.over, .command), (.over, .commit), (.over, .kill), (.over, .ended),
            (.over, .late), (.over, .finish):
            (.over, .ignore)

        case (.fresh, .time), (.fresh, .command), (.fresh, .commit), (.fresh, .answer), (.fresh, .kill),
            (.fresh, .ended),
            (.fresh, .late), (.running, .answer), (.running, .ended), (.commanding, .step), (.commanding, .time),
            (.commanding, .command), (.commanding, .commit), (.commanding, .kill), (.commanding, .ended),
            (.commanding, .finish), (.committing, .step), (.committing, .time), (.committing, .command),
            (.committing, .commit), (.committing, .kill), (.committing, .ended), (.committing, .finish),
            (.killing, .step), (.killing, .time), (.killing, .command), (.killing, .commit), (.killing, .answer),
            (.killing, .kill), (.killing, .finish), (.stuck, .step), (.stuck, .time), (.stuck, .command),
            (.stuck, .commit), (.stuck, .answer), (.stuck, .kill), (.leaving, .command), (.leaving, .commit),
            (.over, .answer):
            (self, .refuse)
        }
    }
}
