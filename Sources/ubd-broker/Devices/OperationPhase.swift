/// The phase of an operation on a device. It alone determines what may happen next: `after` is the complete table.
enum OperationPhase: CaseIterable {
    /// Not begun.
    case fresh
    /// In a step without a kernel command: waiting for a time, the worker, or another reply.
    case running
    /// The kernel executes a command.
    case commanding
    /// The kernel executes START_DEV or END_USER_RECOVERY. The worker must live until it has completed
    /// (docs/kernel-facts.md#start-race).
    case committing
    /// The worker was killed and has not ended.
    case killing
    /// It did not end in time. The operation still waits.
    case stuck
    /// The device is being taken away from the operation, but its command is still in the kernel.
    case leaving
    /// The operation has finished, or the device was taken away.
    case over
}

/// An event in an operation.
enum OperationEvent: CaseIterable {
    /// A step begins.
    case step
    /// A pause has ended.
    case time
    /// A command is sent.
    case command
    /// A command is sent during which the worker must live.
    case commit
    /// The kernel has answered.
    case answer
    /// The worker is killed; the operation goes on without it.
    case kill
    /// The worker is killed so that the current command ends sooner.
    case hurry
    /// The killed worker has ended.
    case ended
    /// Something takes longer than it should.
    case late
    /// The device is taken away.
    case abandon
    /// The operation has no more to do.
    case finish
}

/// The effect of an event.
enum OperationEffect {
    /// Carry it out, or continue after the wait.
    case proceed
    /// Report the delay; the wait goes on.
    case tell
    /// Note the answer for the undoing, begin no step, and continue the operation that took the device away.
    case release
    /// The operation that takes the device away must wait for the kernel's answer.
    case wait
    /// Do nothing: it comes too late, or there is nothing to do.
    case ignore
    /// A bug in ubd: do nothing, and let the operation's owner end it.
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

        // A command that waits for a worker ends with it. During START_DEV and END_USER_RECOVERY the worker must live.
        case (.running, .hurry), (.commanding, .hurry), (.killing, .hurry), (.stuck, .hurry): (self, .proceed)
        case (.fresh, .hurry), (.committing, .hurry), (.leaving, .hurry), (.over, .hurry): (self, .ignore)

        case (.running, .late), (.commanding, .late), (.committing, .late): (self, .tell)
        case (.killing, .late): (.stuck, .tell)
        case (.stuck, .late): (.stuck, .tell)

        case (.fresh, .abandon), (.running, .abandon), (.killing, .abandon), (.stuck, .abandon): (.over, .release)
        case (.commanding, .abandon), (.committing, .abandon): (.leaving, .wait)
        case (.leaving, .answer): (.over, .release)
        // Another caller waits for the same answer.
        case (.leaving, .abandon): (.leaving, .wait)
        case (.over, .abandon): (.over, .release)

        case (.fresh, .finish), (.running, .finish), (.stuck, .finish): (.over, .proceed)

        // What was running when the device was taken away ends without effect.
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
