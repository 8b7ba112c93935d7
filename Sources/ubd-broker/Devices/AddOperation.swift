import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls
import Targets
import WorkerProtocol

/// Adds a device for a client, step by step. Every failure, and the client's end, undoes the steps done so far. Each
/// step ends with a call of `next`. AddKernelDevice.swift has the kernel commands, AddPublication.swift publishes the
/// disk.
final class AddOperation: ClientOperation, PendingAdd {
    /// The client's replies.
    typealias Answer = ClientAnswer

    /// In order. `number` is repeated when another server has the number. Files come first, so that a client that sends none
    /// costs nothing. Connections, one for each queue, come when the kernel has said how many queues there are.
    enum Step: CaseIterable {
        case files
        case number
        case addDevice
        case connections
        case launch
        case startDevice
        case queue
        case publish
    }

    let broker: Broker
    let plan: AddPlan
    let peer: PeerCredentials
    let rule: AccessRule
    let mode: DataMode
    private let answer: (Answer) -> Void
    /// Returns false after the client's end, even before the event loop has noticed it.
    let isWanted: () -> Bool

    let operation: DeviceOperation<Step>
    var device: ManagedDevice?
    private var parking: FileDescriptor?
    private let handover: FileHandover
    var notices: [Notice] = []
    var triedIDs: Set<UInt32> = []
    private var workerStart: WorkerStart?
    /// The disk's device numbers, after START_DEV.
    var diskNodes: UblkParameters.Nodes?
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

    /// Bytes of I/O buffers of this device, for the quota.
    var memoryBytes: UInt64 { plan.bufferBytes }
    var diskBytes: UInt64 { plan.diskBytes }
    var ownerUID: UInt32 { peer.uid }
    /// The socket with the client's files, until the device owns it.
    var parkingEnd: Int32? { parking?.raw ?? handover.descriptor }
    /// The broker's list does not contain the device yet.
    var hasNoDevice: Bool { device == nil }

    func begin() {
        operation.begin(.files, disordered: { [self] in outOfOrder() }) { [self] step in
            if step == .files, let bad = broker.badKernel { return fail(StartErrors.badKernel(bad)) }
            if step == .files { return takesConnections ? operation.next() : awaitFiles(queues: plan.queues) }
            if step == .number { return chooseID() }
            guard let device else { return operation.lacks("a device") }
            switch step {
            case .files, .number: break
            case .addDevice: addDevice(device)
            case .connections: takesConnections ? awaitFiles(queues: device.info.queues) : operation.next()
            case .launch: launch(device)
            case .startDevice: startDevice(device)
            case .queue: setUpQueue(device) { [self] in operation.next() }
            case .publish: publish(device)
            }
        }
    }

    // MARK: Files

    private var takesConnections: Bool { plan.target.queues == .onePerConnection }

    private func awaitFiles(queues: UInt16) {
        guard !plan.target.inputs.isEmpty else {
            do {
                // The worker gets a parking end even without files, since its descriptors are always the same.
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
            answer(.files(count: plan.mostDescriptors(queues: queues), parking: end))
        } catch { fail(StartErrors.broken("socketpair", error)) }
    }

    /// The descriptors that a device needs besides the parking end, for its worker and sockets.
    private static let descriptorsOfDevice: Int32 = 8

    /// Why too few descriptors are left for this device; nil when there are enough.
    private var lackOfDescriptors: InterfaceError? {
        guard ownerUID != 0 else { return nil }
        guard let end = parkingEnd, let next = try? FileDescriptor.duplicate(of: end) else {
            return DescriptorReserve.refusal(.max)
        }
        return DescriptorReserve.refusal(next.raw + AddOperation.descriptorsOfDevice)
    }

    // MARK: The worker

    private func launch(_ device: ManagedDevice) {
        var flags = mode.launchFlags
        if plan.readOnly { flags.insert(.readOnly) }
        if rule.limits.otherFileSystem { flags.insert(.allowOther) }
        if rule.limits.networkFileSystem { flags.insert(.allowNetwork) }
        if plan.target.takesSockets, !rule.limits.anyServer { flags.insert(.localSockets) }
        if broker.configuration.usesLegacyOpcodes { flags.insert(.legacyOpcodes) }
        let message = LaunchMessage(
            target: plan.target, queues: device.info.queues, depth: device.info.depth,
            maxIOBytes: device.info.maxIOBytes,
            flags: flags, options: plan.options.served)
        device.parking = parking.take()
        device.launch = message
        let start = WorkerStart(
            message, for: device, broker: broker,
            listener: WorkerStart.Listener(
                geometry: { [unowned self] geometry in setParameters(device, geometry) },
                ready: { [unowned self] in operation.next() },
                failed: { [unowned self] error in fail(error) },
                affinity: { [unowned self] queue, next in
                    operation.command({ broker.driver.affinity(of: device.id, queue: queue, $0) }) { next($0.content) }
                },
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
            return fail(StartErrors.workerBroke("it made a writable disk instead of a read-only one"))
        }
        if let failure = broker.backingProblem(geometry) {
            return fail(StartErrors.explain(failure, device, workerGID: broker.workerGID))
        }
        if let error = refusalOfSharedBytes(geometry) { return fail(error) }
        device.file = geometry.file
        device.info.sizeBytes = geometry.size
        device.info.blockSize = geometry.logicalBlock
        device.info.physicalBlockSize = geometry.physicalBlock
        device.info.readOnly = geometry.attributes.contains(.readOnly)
        device.info.buffered = geometry.attributes.contains(.buffered)
        notices += plan.notices(about: geometry, mode: mode)
        limitIO(device, geometry) { [self] in tellKernel(device, geometry) }
    }

    /// Only a device's worker reports which file the device has. A worker that lies could keep another user's file from that
    /// user for ever. So another user's device that waits for its file does not count for an add with `--shared`, which is
    /// told of it.
    private func refusalOfSharedBytes(_ geometry: Geometry) -> InterfaceError? {
        let account = broker.account(of: ownerUID)
        let begin = plan.options.offset
        let waiting = broker.devicesWaiting(for: begin..<begin + geometry.size, of: geometry.file)
        let own = waiting.first { broker.account(of: $0.owner) == account }
        if let own { return StartErrors.isWaitedFor(by: own, ownerUID, isOfAccount: true) }
        guard let other = waiting.first else { return nil }
        guard plan.shared else { return StartErrors.isWaitedFor(by: other, ownerUID, isOfAccount: false) }
        notices.append(plan.notice(aboutWaiting: ownerUID == 0 ? other.info.link ?? other.info.node : nil))
        return nil
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

    // MARK: The end

    /// The client is gone, so nobody wants the device.
    func clientGone() {
        fail(
            .failed(
                message: "the client went away", remedy: "keep the connection open until the last reply",
                step: "client", errno: nil))
    }

    func outOfOrder() { fail(StartErrors.outOfOrder) }

    func finish(_ result: Answer) {
        if isOver { return }
        isOver = true
        operation.finish()
        broker.ended(self)
        answer(result)
    }

    /// Undoes everything, then replies to the client.
    func fail(_ error: InterfaceError) {
        guard operation.isActive else { return }
        // The running kernel command must end first; above all the worker must not die during START_DEV.
        operation.abandon { [self] in undo(error) }
    }

    private func undo(_ error: InterfaceError) {
        if parking == nil { parking = handover.take() }
        broker.note(error, of: plan, rule, peer)
        guard let device else {
            if let parking = parking.take() { broker.undertaker.letGo(parking, owner: ownerUID) }
            return finish(.failed(error))
        }
        workerStart?.abandon()
        if let parking = parking.take() { device.parking = consume parking }
        // The operation ends when nothing is left. An unkillable worker leaves a stuck device.
        Teardown(device, broker: broker) { [self] _ in finish(.failed(error)) }.begin(.killFirst)
    }
}
