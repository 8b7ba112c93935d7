import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls
import Targets
import WorkerProtocol

/// Adds one device for one client, step by step; whatever goes wrong on the way, and the client's going away, undoes
/// everything that was done so far. The steps stand in their order; each ends in a call of the next.
final class AddOperation: ClientOperation, PendingAdd {
    /// What the client hears.
    typealias Answer = ClientAnswer

    /// In the order in which they run. `number` comes again when somebody else has the number.
    private enum Step: CaseIterable {
        case files
        case number
        case addDevice
        case launch
        case startDevice
        case queue
        case publish
    }

    /// Milliseconds.
    private enum Deadline {
        static let lingeringNumber = 3_000
        static let lingeringAnyNumber = 1_000
        static let pause = 50
        static let queueSettings = 2_000
        static let udev = 8_000
        static let udevPause = 5
    }

    let broker: Broker
    private let plan: AddPlan
    private let peer: PeerCredentials
    private let rule: AccessRule
    private let mode: DataMode
    private let answer: (Answer) -> Void
    /// False once the client is gone, which the event loop may not have heard yet.
    private let isWanted: () -> Bool

    private let operation: DeviceOperation<Step>
    private var device: ManagedDevice?
    private var parking: FileDescriptor?
    private let handover: FileHandover
    private var notices: [Notice] = []
    private var triedIDs: Set<UInt32> = []
    private var workerStart: WorkerStart?
    /// The disk's device numbers, once it is started.
    private var diskNodes: UblkParameters.Nodes?
    private var failure: InterfaceError?
    private var isOver = false

    init(
        _ plan: AddPlan, mode: DataMode, peer: PeerCredentials, rule: AccessRule, broker: Broker,
        isWanted: @escaping () -> Bool, answer: @escaping (Answer) -> Void
    ) {
        self.plan = plan
        self.mode = mode
        self.peer = peer
        self.rule = rule
        self.broker = broker
        self.isWanted = isWanted
        self.answer = answer
        handover = FileHandover(loop: broker.loop)
        operation = DeviceOperation(loop: broker.loop)
    }

    /// Bytes of I/O buffers that this device will have, for the quota.
    var memoryBytes: UInt64 { plan.bufferBytes }
    var ownerUID: UInt32 { peer.uid }
    /// Where the client's files lie as long as there is no device that has it.
    var parkingEnd: Int32? { parking?.raw ?? handover.descriptor }
    /// Not yet a device of the broker's list.
    var hasNoDevice: Bool { device == nil }

    func begin() {
        operation.begin(.files, disordered: { [self] in outOfOrder() }) { [self] step in
            if step == .files { return awaitFiles() }
            if step == .number { return chooseID() }
            guard let device else { return }
            switch step {
            case .files, .number: break
            case .addDevice: addDevice(device)
            case .launch: launch(device)
            case .startDevice: startDevice(device)
            case .queue: setUpQueue(device) { [self] in operation.next() }
            case .publish: publish(device, deadline: monotonicNanoseconds() + UInt64(Deadline.udev) * 1_000_000)
            }
        }
    }

    // MARK: Files

    private func awaitFiles() {
        guard !plan.target.inputs.isEmpty else {
            do {
                // The worker is given a parking end all the same: its descriptors are always the same ones.
                let pair = try makeMessagePair()
                parking = consume pair.first
            } catch { return fail(StartErrors.broken("socketpair", error)) }
            if let error = lackOfDescriptors { return fail(error) }
            return operation.next()
        }
        do {
            let end = try handover.begin { [unowned self] error in
                parking = handover.take()
                if let error = error ?? lackOfDescriptors { fail(error) } else { operation.next() }
            }
            if let error = lackOfDescriptors {
                close(end)
                return fail(error)
            }
            answer(.files(count: plan.mostDescriptors, parking: end))
        } catch { fail(StartErrors.broken("socketpair", error)) }
    }

    /// A worker and its sockets take some more than the parking end.
    private static let descriptorsOfDevice: Int32 = 8

    /// Why there are none for this device; nil when there are.
    private var lackOfDescriptors: InterfaceError? {
        guard ownerUID != 0 else { return nil }
        guard let end = parkingEnd, let next = try? FileDescriptor.duplicate(of: end) else {
            return DescriptorReserve.refusal(.max)
        }
        return DescriptorReserve.refusal(next.raw + AddOperation.descriptorsOfDevice)
    }

    // MARK: The kernel's device

    private func chooseID() {
        let id: UInt32
        do { id = try broker.number(plan.id, rule, except: triedIDs) } catch { return fail(error) }
        triedIDs.insert(id)
        let device = ManagedDevice(
            adding: plan, mode: mode, ioTimeout: ioTimeout, allowedCPUs: rule.limits.cpus.flatMap(CPUList.init),
            groupLimits: broker.groupLimits(rule, peer, plan),
            trustedContent: rule.limits.trustedContent, id: id, owner: ownerUID, generation: broker.newGeneration(),
            node: broker.nodes.block(id))
        do {
            // The record comes before the kernel call, so that a broker that dies in between knows of it.
            try broker.store.create(device.record)
        } catch {
            // Somebody put one there this moment.
            if error.errno == EEXIST { return chooseID() }
            return fail(StartErrors.broken("write the device's record", error))
        }
        broker.devices[id] = device
        self.device = device
        operation.next()
    }

    private func addDevice(_ device: ManagedDevice) {
        var info = UblkDeviceInfo()
        info.deviceID = device.id
        info.queues = plan.queues
        info.depth = plan.depth
        info.maxIOBytes = plan.maxIOBytes
        // Ours to use: it tells a later broker that the kernel's device is the one of the record.
        info.serverFlags = device.info.generation
        info.flags = features.rawValue
        operation.command(
            { broker.driver.add(info, $0) }, late: { [self] answer in addedLate(answer) },
            then: { [self] answer in deviceAdded(device, answer) })
    }

    /// Seconds: what was asked for, which the rule allows, or the default, brought into the rule's bounds.
    private var ioTimeout: Int64 {
        let wanted = plan.ioTimeout ?? Int64(broker.configuration.ioTimeout)
        guard let bounds = rule.limits.ioTimeout else { return wanted }
        return min(max(wanted, Int64(clamping: bounds.lowerBound)), Int64(clamping: bounds.upperBound))
    }

    /// What the device must be able to do.
    private var features: UblkFeatures {
        var features = plan.recovery.features.union(mode.features)
        // For upgrades. The kernel takes it only together with recovery.
        if plan.recovery != .none, !mode.isBatch, broker.driver.features.contains(.quiesce) {
            features.insert(.quiesce)
        }
        return features
    }

    private func deviceAdded(_ device: ManagedDevice, _ answer: DriverAnswer<UblkDeviceInfo>) {
        guard let info = answer.content else { return deviceNotAdded(device, answer.verdict, answer.errno) }
        device.isInKernel = true
        // Not before the number is ours: udev would give a device of another server to our user. Not after START_DEV: the
        // disk must not appear before its rule can know it.
        let link = broker.nodes.mayLink(device.id) ? Nodes.linkName(device.id) : nil
        do { try broker.store.writeUdev(device.info, link: link) } catch {
            return fail(StartErrors.broken("write the device's record for udev", error))
        }
        // Unknown flags are dropped without a word, so what came back is compared with what must be there.
        guard info.features.contains(.ioctlEncoding) || broker.configuration.usesLegacyOpcodes else {
            return fail(
                .kernelUnsupported(
                    message: "this kernel's ublk driver lacks ioctl-encoded commands",
                    remedy: "use Linux 6.4 or later", feature: "CMD_IOCTL_ENCODE"))
        }
        let missing = features.subtracting(info.features)
        guard missing.isEmpty else { return fail(StartErrors.lacking(missing, plan.recovery, mode)) }
        guard info.depth > 0, info.queues > 0, info.depth <= plan.depth, info.queues <= plan.queues,
            info.maxIOBytes > 0, info.maxIOBytes <= plan.maxIOBytes
        else { return fail(StartErrors.broken("ADD_DEV", SystemError("the kernel's limits make no sense", EINVAL))) }
        notices += plan.notices(about: info)
        device.info.queues = info.queues
        device.info.depth = info.depth
        device.info.maxIOBytes = info.maxIOBytes
        operation.next()
    }

    private func deviceNotAdded(_ device: ManagedDevice, _ verdict: ControlVerdict, _ errno: Int32) {
        if verdict == .taken {
            // It is another server's: forget our record at once, so that nobody deletes theirs for it.
            broker.store.removeRecord(device.id)
            broker.forget(device)
            self.device = nil
            // Our own last device of that number may still be open in udev, which has been told of its end; the kernel is
            // rarely done with it when DEL_DEV_ASYNC is.
            let patience = plan.id == nil ? Deadline.lingeringAnyNumber : Deadline.lingeringNumber
            if broker.hasDeleted(device.id, withinMilliseconds: patience) {
                triedIDs.remove(device.id)
                return operation.wait(milliseconds: Deadline.pause) { [self] in operation.go(to: .number) }
            }
            guard let wanted = plan.id else { return operation.go(to: .number) }
            return fail(
                .idInUse(
                    message: "device number \(wanted) is in use by another ublk server or still being deleted",
                    remedy: "choose another number, or leave -n out", id: Int64(wanted)))
        }
        // It may be there: the undoing must look for it.
        device.mayBeInKernel = verdict == .unknown
        fail(StartErrors.kernelSaysNo("ADD_DEV", errno))
    }

    // MARK: The worker

    private func launch(_ device: ManagedDevice) {
        var flags = mode.launchFlags
        if plan.readOnly { flags.insert(.readOnly) }
        if rule.limits.otherFileSystem { flags.insert(.allowOther) }
        if rule.limits.networkFileSystem { flags.insert(.allowNetwork) }
        if broker.configuration.usesLegacyOpcodes { flags.insert(.legacyOpcodes) }
        let message = LaunchMessage(
            target: plan.target, queues: device.info.queues, depth: device.info.depth,
            maxIOBytes: device.info.maxIOBytes,
            flags: flags, options: plan.options)
        device.parking = parking.take()
        device.launch = message
        let start = WorkerStart(
            message, for: device, broker: broker,
            listener: WorkerStart.Listener(
                geometry: { [unowned self] geometry in setParameters(device, geometry) },
                ready: { [unowned self] in operation.next() },
                failed: { [unowned self] error in fail(error) },
                sealed: { [unowned self] in
                    device.setState(.starting)
                    device.step = .starting
                    broker.save(device)
                }))
        workerStart = start
        start.begin()
    }

    // MARK: Parameters

    private func setParameters(_ device: ManagedDevice, _ geometry: Geometry) {
        guard geometry.size <= TargetOption.largestSize else {
            return fail(StartErrors.workerBroke("it announced a disk of \(geometry.size) bytes"))
        }
        if let limit = rule.limits.maxSizeBytes, geometry.size > limit {
            return fail(
                .quotaReached(
                    message: "the device would have \(geometry.size) bytes; the access policy allows \(limit)",
                    remedy: "use --size, or ask the administrator for a larger max-size", limit: "max-size",
                    value: Int64(clamping: limit)))
        }
        if rule.limits.readOnlyOnly, !geometry.attributes.contains(.readOnly) {
            return fail(StartErrors.workerBroke("it made a writable disk against its orders"))
        }
        if let failure = broker.backingProblem(geometry) {
            return fail(StartErrors.explain(failure, device, workerGID: broker.workerGID))
        }
        if let waiting = broker.deviceWaiting(for: geometry, offset: plan.options.offset) {
            return fail(StartErrors.isWaitedFor(by: waiting, ownerUID))
        }
        device.file = geometry.file
        device.info.sizeBytes = geometry.size
        device.info.blockSize = geometry.logicalBlock
        device.info.physicalBlockSize = geometry.physicalBlock
        device.info.readOnly = geometry.attributes.contains(.readOnly)
        device.info.buffered = geometry.attributes.contains(.buffered)
        notices += plan.notices(about: geometry, mode: mode)
        limitIO(device, geometry) { [self] in tellKernel(device, geometry) }
    }

    private func tellKernel(_ device: ManagedDevice, _ geometry: Geometry) {
        let parameters = DiskParameters.make(geometry, maxIOBytes: device.info.maxIOBytes, mode: mode)
        operation.command({ broker.driver.set(parameters, of: device.id, $0) }) { [self] answer in
            guard answer.isDone else {
                return fail(StartErrors.kernelSaysNo("SET_PARAMS", answer.errno))
            }
            workerStart?.serve()
        }
    }

    // MARK: Start

    private func startDevice(_ device: ManagedDevice) {
        guard let worker = device.worker else { return }
        device.mayBeStarted = true
        operation.commit({ broker.driver.start(device.id, worker: worker.pid, $0) }) { [self] answer in
            started(device, answer)
        }
    }

    private func started(_ device: ManagedDevice, _ answer: DriverAnswer<Void>) {
        guard answer.isDone else {
            return fail(StartErrors.kernelSaysNo("START_DEV", answer.errno))
        }
        guard let worker = device.worker, worker.isAlive else {
            return fail(StartErrors.workerBroke("it died during the start"))
        }
        do { try worker.resume() } catch { return fail(StartErrors.broken("resume the worker", error)) }
        operation.command({ broker.driver.parameters(of: device.id, $0) }) { [self] answer in
            guard let nodes = answer.content?.nodes else {
                return fail(StartErrors.kernelSaysNo("GET_PARAMS", answer.errno))
            }
            diskNodes = nodes
            operation.next()
        }
    }

    /// Before its owner may open the device, as far as we can: with udev he may already.
    private func setUpQueue(_ device: ManagedDevice, _ next: @escaping () -> Void) {
        let settings = QueueSettings.of(
            queues: device.info.queues, depth: device.info.depth, noticesDeaths: broker.canRepeatRecovery)
        if settings.isEmpty { return next() }
        write(settings, in: broker.queueFolder(of: device.id)) { problem in
            if let problem {
                let all = settings.map { "\($0.name)=\($0.text)" }.joined(separator: " ")
                Log.warning("queue-setting", ("device", "\(device.id)"), ("settings", all), ("why", problem))
            }
            next()
        }
    }

    /// By a child, since it may wait for requests that never end. `next` hears what is wrong, or nil; it is not called when the
    /// add has failed meanwhile.
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
            // It outlasts an add that fails meanwhile: a child that hangs counts against the user all the same.
            timer = broker.loop.after(milliseconds: Deadline.queueSettings) {
                writers.charge(writing)
                goOn("not done within \(Deadline.queueSettings / 1000) s: there is a request that does not end")
            }
        } catch { goOn("\(error)") }
    }

    private func publish(_ device: ManagedDevice, deadline: UInt64) {
        guard let nodes = diskNodes else { return }
        do {
            try broker.nodes.own(device.id, uid: ownerUID, major: nodes.diskMajor, minor: nodes.diskMinor)
        } catch {
            guard error.errno == EPERM else {
                return fail(StartErrors.notPublished(device.id, broker.nodes.block(device.id), error))
            }
            // udev gives it to its owner.
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
        // From here on it stays: a client that died while the kernel started it has not been heard of yet.
        guard isWanted() else { return clientGone() }
        device.step = .live
        device.setState(.live)
        broker.save(device)
        Log.info(
            "added", ("device", "\(device.id)"), ("owner", "\(ownerUID)"), ("target", plan.target.name),
            ("bytes", "\(device.info.sizeBytes)"), ("worker", "\(device.info.workerPid ?? 0)"),
            ("rule", rule.place))
        broker.noteLayout(of: device)
        finish(.added(broker.description(of: device), notices))
        broker.watchOver(device)
    }

    // MARK: The end

    /// The client went away: nobody wants the device.
    func clientGone() {
        fail(
            .failed(
                message: "the client went away", remedy: "keep the connection open until the last reply",
                step: "client", errno: nil))
    }

    func outOfOrder() { fail(StartErrors.outOfOrder) }

    private func finish(_ result: Answer) {
        if isOver { return }
        isOver = true
        operation.finish()
        broker.ended(self)
        answer(result)
    }

    /// Undoes everything, then tells the client.
    func fail(_ error: InterfaceError) {
        if isOver || failure != nil { return }
        failure = error
        // What the kernel is doing must end first; above all the worker must not die during START_DEV.
        operation.abandon { [self] in undo() }
    }

    private func undo() {
        guard let error = failure else { return }
        if parking == nil { parking = handover.take() }
        broker.note(error, of: plan, rule, peer)
        guard let device else {
            if let parking = parking.take() { broker.undertaker.letGo(parking, owner: ownerUID) }
            return finish(.failed(error))
        }
        workerStart?.abandon()
        if let parking = parking.take() { device.parking = consume parking }
        // The operation ends when nothing is left; a worker that can't be killed leaves a stuck device behind.
        Teardown(device, broker: broker) { [self] _ in finish(.failed(error)) }.begin(.killFirst)
    }

    /// The add failed while ADD_DEV was in the kernel: what it did must be known to the undoing.
    private func addedLate(_ answer: DriverAnswer<UblkDeviceInfo>) {
        guard let device else { return }
        switch answer.verdict {
        case .done: device.isInKernel = true
        case .unknown: device.mayBeInKernel = true
        default:
            // There is nothing in the kernel that is ours.
            broker.store.removeRecord(device.id)
            broker.forget(device)
            self.device = nil
        }
    }
}
