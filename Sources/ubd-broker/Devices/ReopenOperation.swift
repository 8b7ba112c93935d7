import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Reopens a device's file by its owner, after broker and worker died together and the file was lost. The file is
/// parked as for an add, and a rehearsal examines it. It must be the same file: the same inode with the same birth
/// time, at least as large, opened with the same access. Until then no command is sent to the kernel, so that a wrong
/// file leaves the device waiting as before.
final class ReopenOperation: ClientOperation, Reopening {
    /// In order.
    private enum Step: CaseIterable {
        case files
        case rehearse
        case recover
    }

    private let broker: Broker
    private let device: ManagedDevice
    private let operation: DeviceOperation<Step>
    private let handover: FileHandover
    private var parking: FileDescriptor?
    private var rehearsal: Rehearsal?
    private let permission: () -> InterfaceError?
    /// For a device of connections: what its server agrees to now.
    private let agreed: [OptionValue]
    private var answer: ((ClientAnswer) -> Void)?

    /// `permission`: called when there is something to recover; returns why it is not permitted.
    init(
        _ device: ManagedDevice, broker: Broker, agreed: [OptionValue] = [],
        permission: @escaping () -> InterfaceError?, answer: @escaping (ClientAnswer) -> Void
    ) {
        self.agreed = agreed
        self.permission = permission
        self.device = device
        self.broker = broker
        self.answer = answer
        handover = FileHandover(loop: broker.loop)
        operation = DeviceOperation(loop: broker.loop)
    }

    /// The socket with the client's files, until the device owns it.
    var parkingEnd: Int32? { parking?.raw ?? handover.descriptor }

    func begin() {
        if let refusal = refusal ?? difference ?? permission() {
            answer?(.failed(refusal))
            return
        }
        device.reopening = self
        operation.begin(.files, disordered: { [self] in outOfOrder() }) { [self] step in
            switch step {
            case .files: awaitFiles()
            case .rehearse: rehearse()
            case .recover: recover()
            }
        }
    }

    private func awaitFiles() {
        do {
            let end = try handover.begin { [self] error in
                parking = handover.take()
                if let error { fail(error) } else { operation.next() }
            }
            answer?(.files(count: device.launch?.descriptors.upperBound ?? 0, parking: end))
        } catch { fail(StartErrors.broken("socketpair", error)) }
    }

    /// The client closed its connection. A recovery that has begun goes on without it.
    func clientGone() {
        answer = nil
        if device.reopening === self {
            fail(
                .failed(
                    message: "the client went away", remedy: "keep the connection open until the last reply",
                    step: "client", errno: nil))
        }
    }

    /// The device is being taken down.
    func abandon() {
        fail(
            .failed(
                message: "device \(device.id) is being deleted", remedy: "see 'ubd list'", step: "delete", errno: nil))
    }

    func outOfOrder() { fail(StartErrors.outOfOrder) }

    private var refusal: InterfaceError? {
        let name = device.info.link ?? device.info.node
        if device.reopening != nil {
            return .busy(
                message: "\(name) is being recovered already", remedy: "see 'ubd list -n \(device.id)'",
                id: Int64(device.id), holder: "another recover")
        }
        guard device.waitsForFile else {
            let (what, remedy) =
                switch device.info.state {
                case .failed: ("failed permanently", "delete it ('ubd del -n \(device.id)') and add it again")
                case .recovering: ("recovering by itself", "wait for it: see 'ubd list -n \(device.id)'")
                case let state: (state.rawValue, "there is nothing to recover; see 'ubd list -n \(device.id)'")
                }
            return .failed(
                message: "\(name) does not wait for \(device.source): it is \(what)", remedy: remedy, step: "state",
                errno: nil)
        }
        // Nobody could tell its layer and map from others.
        guard device.launch?.target.hasBlockMap != true else {
            return .failed(
                message: "\(name) waits for its layer, which is lost",
                remedy: "end the use of the device and delete it with 'ubd del -n \(device.id) --force'", step: "layer",
                errno: nil)
        }
        guard device.launch != nil, device.needsFreshInputs || device.file != .none else {
            return .failed(
                message: "the record of \(name) does not tell which file it had",
                remedy: "delete it ('ubd del -n \(device.id) --force') and add it again", step: "record", errno: nil)
        }
        return nil
    }

    /// Why this is not the device's export; nil when it is.
    private var difference: InterfaceError? {
        do throws(InterfaceError) { return try device.disagreement(agreed) } catch { return error }
    }

    /// The program of the new worker. A new connection is needed whenever the server restarts, so it must not change the program.
    private var program: WorkerProgram {
        device.needsFreshInputs ? device.program ?? broker.program : broker.program
    }

    private func rehearse() {
        guard let launch = device.relaunch, let parking = parking?.raw else {
            return fail(StartErrors.workerBroke("its files are gone"))
        }
        let rehearsal = Rehearsal(
            of: program, for: device, launch, parking: parking, broker: broker)
        self.rehearsal = rehearsal
        rehearsal.begin { [self] result in
            self.rehearsal = nil
            switch result {
            case .failure(let error): fail(error)
            case .success(let geometry): compare(geometry)
            }
        }
    }

    private func compare(_ geometry: Geometry) {
        if device.reopening !== self { return }
        let remedy = "give the \(device.hasServer ? "export" : "file") that it was added with; the device waits on"
        let name = device.info.file.map { " (\($0))" } ?? ""
        guard geometry.file == device.file else {
            return fail(
                .badFile(
                    message: "this is not the file that device \(device.id) was made of\(name)", remedy: remedy,
                    index: 0))
        }
        if let difference = device.difference(geometry) {
            return fail(
                .badFile(
                    message:
                        "with this \(device.hasServer ? "server" : "file") device \(device.id) would be another disk: \(difference)",
                    remedy: remedy, index: 0))
        }
        operation.next()
    }

    private func recover() {
        operation.finish()
        device.reopening = nil
        broker.unstoreInputs(of: device)
        device.parking = parking.take()
        Log.notice("file-again", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
        let what = device.hasServer ? "brought a new connection to its server" : "reopened its file"
        let recovery = RecoverOperation(
            device, broker: broker, programs: [program], reason: "its owner has \(what)"
        ) { [self] error in
            let answer = answer
            self.answer = nil
            if let error { answer?(.failed(error)) } else { answer?(.added(broker.description(of: device), [])) }
        }
        recovery.begin()
    }

    private func fail(_ error: InterfaceError) {
        guard device.reopening === self else { return }
        operation.abandon()
        device.reopening = nil
        rehearsal?.abandon()
        rehearsal = nil
        if parking == nil { parking = handover.take() }
        if let parking = parking.take() { broker.undertaker.letGo(parking, owner: device.owner) }
        Log.client(
            .request, device.owner, .notice, "recover-failed", [("device", "\(device.id)"), ("why", error.message)])
        let answer = answer
        self.answer = nil
        answer?(.failed(error))
    }
}

extension Broker {
    /// Starts to reopen a device's file. `answer` gets all replies.
    func recover(
        _ request: RecoverRequest, peer: PeerCredentials, answer: @escaping (ClientAnswer) -> Void
    ) -> ReopenOperation? {
        guard let device = device(request.id, request.generation, for: "recover", of: peer) else {
            answer(.failed(noSuchDevice(request.id)))
            return nil
        }
        if let refusal = ownersAlone(device, peer, "recover") {
            answer(.failed(refusal))
            return nil
        }
        let permission = { [self] in permitStart(for: device, "recover", peer) }
        let operation = ReopenOperation(
            device, broker: self, agreed: request.options, permission: permission, answer: answer)
        operation.begin()
        return operation
    }
}
