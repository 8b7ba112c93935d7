import BrokerInterface
import Glibc
import SystemCalls

/// Milliseconds.
private enum Deadline {
    static let queueSettings = 2_000
    static let udev = 8_000
    static let udevPause = 5
}

/// The end of an add: the disk gets its queue settings, its owner and its names.
extension AddOperation {
    /// Before the owner can open the device, if possible; with udev the owner may already have it.
    func setUpQueue(_ device: ManagedDevice, _ next: @escaping () -> Void) {
        let settings = QueueSettings.of(
            queues: device.info.queues, depth: device.info.depth, noticesDeaths: broker.noticesDeaths)
        if settings.isEmpty { return next() }
        write(settings, in: broker.queueFolder(of: device.id)) { problem in
            if let problem {
                let all = settings.map { "\($0.name)=\($0.text)" }.joined(separator: " ")
                Log.warning("queue-setting", ("device", "\(device.id)"), ("settings", all), ("why", problem))
            }
            next()
        }
    }

    /// Writes settings through a child, since a write may wait for requests that never end. `next` gets the problem or
    /// nil; it is not called when the add has failed meanwhile.
    func write(_ settings: [QueueSettings.Setting], in folder: String, _ next: @escaping (String?) -> Void) {
        var isWaiting = true
        var timer: EventLoop.Timer?
        let goOn = { [self] (problem: String?) in
            guard isWaiting, operation.isActive else { return }
            isWaiting = false
            broker.loop.cancel(timer)
            next(problem)
        }
        do {
            let writers = broker.undertaker.writers
            let account = broker.account(of: ownerUID)
            let writing = try writers.write(settings, in: folder, account: account) { errno in
                goOn(errno == 0 ? nil : SystemError.name(errno))
            }
            // The timer continues after a failed add: a child that hangs counts against the user in any case.
            timer = broker.loop.after(milliseconds: Deadline.queueSettings) {
                writers.charge(writing)
                goOn("not done within \(Deadline.queueSettings / 1000) s: a request of the disk does not end")
            }
        } catch { goOn("\(error)") }
    }

    func publish(_ device: ManagedDevice) {
        publish(device, deadline: monotonicNanoseconds() + UInt64(Deadline.udev) * 1_000_000)
    }

    private func publish(_ device: ManagedDevice, deadline: UInt64) {
        guard let nodes = diskNodes else { return operation.lacks("the disk's numbers") }
        do {
            try broker.nodes.own(device.id, uid: ownerUID, major: nodes.diskMajor, minor: nodes.diskMinor)
        } catch {
            guard error.errno == EPERM else {
                return fail(StartErrors.notPublished(device.id, broker.nodes.block(device.id), error))
            }
            // Without CAP_CHOWN udev gives the node to its owner.
            guard monotonicNanoseconds() < deadline else { return fail(StartErrors.udevDoesNot(device.info.node)) }
            return operation.wait(milliseconds: Deadline.udevPause) { [self] in publish(device, deadline: deadline) }
        }
        do {
            if try broker.nodes.makeLink(device.id) {
                device.info.link = broker.nodes.link(device.id)
            } else {
                notices.append(
                    Notice(
                        code: "link",
                        message: "\(broker.nodes.link(device.id)) exists and is not ours: use \(device.info.node)"))
            }
        } catch { return fail(StartErrors.broken("publish the device", error)) }
        // From here on the device stays, so check the client now: the loop may not have noticed its end.
        guard isWanted() else { return clientGone() }
        device.step = .live
        device.setState(.live)
        // A later broker undoes a device that is not recorded as live, even when it is in use.
        if let problem = broker.save(device) {
            return fail(StartErrors.notRecorded(problem, in: broker.store.folder))
        }
        Log.info(
            "added", ("device", "\(device.id)"), ("owner", "\(ownerUID)"), ("target", plan.target.name),
            ("bytes", "\(device.info.sizeBytes)"), ("worker", "\(device.info.workerPid ?? 0)"),
            ("rule", rule.place))
        broker.noteLayout(of: device)
        finish(.added(broker.description(of: device), notices))
        broker.watchOver(device)
    }
}
