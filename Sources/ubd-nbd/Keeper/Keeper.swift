import BrokerInterface
import Dialing
import Glibc
import SystemCalls
import Varlink

/// Stays with one device, as its owner: makes its connections again when they are lost, and ends with it.
///
/// The broker says when the device waits for connections (Monitor). Then the old ones are drained (`Barrier`), the server is
/// dialled until it is there and is the same, and the new connections are brought (Recover).
final class Keeper {
    private let order: KeepOrder
    private let dialer: Dialer
    private let arguments: Arguments
    private let server: ServerCommand?
    private let attention: Attention
    var journal: Journal
    private var limits = LineLimits()
    private let facts: ExportFacts
    private let count: Int
    /// The connections that the device has or may have, to drain them.
    private var kept: ConnectionSet?
    private var losses = Losses()
    private var isGone = false
    /// The server is being connected to.
    private var isDialling = false

    /// How long a server may take to finish what it had received, in seconds.
    private static let drainSeconds = 30
    private static let callSeconds = 60

    init(
        _ order: KeepOrder, _ dialer: Dialer, _ arguments: Arguments, _ server: ServerCommand?,
        _ connections: consuming ConnectionSet
    ) {
        self.order = order
        self.dialer = dialer
        self.arguments = arguments
        self.server = server
        attention = dialer.attention
        journal = Journal(device: "device \(order.id)")
        facts = connections.facts
        count = connections.numbers.count
        kept = consume connections
    }

    /// Returns when the device is no more.
    func run() {
        server?.show = { [journal] bytes in journal.tell(output: bytes) }
        server?.ended = { [unowned self] in
            tell(.serverEnd, serverEnd, again: true)
            // The listening socket is still there, so a connection to a dead server would be waited for in vain.
            return isDialling ? .giveUp : .goOn
        }
        var pause = BackOff()
        while !isGone {
            do throws(BrokerLink.Failure) {
                try watch {
                    pause = BackOff()
                    limits.forget { if case .refusal = $0 { true } else { $0 == .unreadableBroker } }
                }
            } catch {
                switch error {
                case .refused(.noSuchDevice): isGone = true
                case .refused(let error): tell(.refusal(error.name), "\(error.message); \(error.remedy)")
                case .broken: tell(.unreadableBroker, "what the broker says can not be read")
                case .noBroker, .givenUp: break
                }
            }
            if !isGone { rest(pause.next()) }
        }
        // nbdkit does not end before its connections have.
        kept = nil
        server?.stop()
    }

    private var serverEnd: String {
        guard let server, let end = server.end else { return "" }
        let next =
            arguments.restartsCommand
            ? "it is started again" : "what it had answered and not written may be lost, so it is not started again"
        return "\(server.name) \(end); \(next)"
    }

    private func rest(_ milliseconds: Int) { try? attention.pause(Deadline(milliseconds: milliseconds)) }

    // MARK: What the broker tells

    /// Returns when the device is gone; throws when the connection is.
    private func watch(_ isThere: () -> Void) throws(BrokerLink.Failure) {
        var link = try BrokerLink(arguments.broker ?? BrokerAPI.socketPath, attention)
        try link.send(.monitor(MonitorRequest(ids: [order.id], keep: true)))
        var waits = false
        var unanswered: Int64 = 0
        var tries = BackOff()
        while !isGone {
            // While the device waits for connections, the broker is only listened to between two tries.
            let deadline = waits ? Deadline(milliseconds: tries.next()) : Deadline(seconds: 3600)
            if let incoming = try link.receive(deadline) {
                isThere()
                guard let change = try Self.change(incoming.reply.parameters), change.id == order.id else { continue }
                isGone = change.generation != order.generation || change.state == nil
                let before = (waits, unanswered)
                (waits, unanswered) = (change.waits, change.unanswered ?? 0)
                if (waits, unanswered) != before {
                    let pause = waits && !before.0 ? losses.pause(now: monotonicNanoseconds()) : 0
                    tries = BackOff(unanswered: unanswered, atLeast: pause)
                }
            } else if waits, try restore() {
                waits = false
            }
        }
    }

    private static func change(_ parameters: JSON) throws(BrokerLink.Failure) -> DeviceChange? {
        do { return try MonitorReply(parameters: parameters, unknown: .ignore).change } catch { throw .broken }
    }

    // MARK: Fresh connections

    /// One try. True when the device has them.
    private func restore() throws(BrokerLink.Failure) -> Bool {
        drain()
        guard serverIsThere() else { return false }
        do throws(DialFailure) {
            let connections = try dial()
            guard connections.numbers.count == count else {
                throw DialFailure(.unsuitable, "the server takes fewer connections than before", remedy: "")
            }
            var isSent = false
            var failure: DialFailure?
            do throws(DialFailure) { try bring(connections) { isSent = true } } catch { failure = error }
            // Whatever the broker answers: a worker may have written over what it was sent, also when the answer is lost.
            if isSent { kept = consume connections }
            if let failure { throw failure }
            limits.forget { if case .failure = $0 { true } else { false } }
            tell(
                .restored, "has \(count == 1 ? "a connection" : "\(count) connections") to the server again",
                again: true)
            return true
        } catch {
            tell(.failure(error.kind), error.message)
            return false
        }
    }

    /// A server that is away for a night is no reason for a thousand lines.
    private func tell(_ subject: LineLimits.Subject, _ text: String, again: Bool = false) {
        guard let line = limits.line(subject, text, again: again, now: monotonicNanoseconds()) else { return }
        journal.tell(line)
    }

    private func dial() throws(DialFailure) -> ConnectionSet {
        isDialling = true
        defer { isDialling = false }
        return try ConnectionSet.dial(dialer, count: count, before: facts)
    }

    private func drain() {
        guard let connections = kept.take() else { return }
        let deadline = Deadline(seconds: Self.drainSeconds)
        if let isWhole = try? Barrier.run(connections.numbers, deadline, attention), !isWhole {
            tell(
                .drain,
                "the server did not end a lost connection within \(Self.drainSeconds) s; what it had received "
                    + "may still be written", again: true)
        }
    }

    /// A server that ubd started may have to be started again.
    private func serverIsThere() -> Bool {
        guard let server else { return true }
        // qemu-nbd ends a connection while its writes are under way. When it ends itself it finishes them.
        if arguments.restartsCommand, server.end == nil, !server.finishesConnections { server.stop() }
        guard server.end != nil else { return true }
        guard arguments.restartsCommand else { return false }
        do { try server.start() } catch {
            tell(.failure(error.kind), error.message)
            return false
        }
        return true
    }

    /// Gives them to the broker. Calls `sent` when it has them, before it has answered.
    private func bring(_ connections: borrowing ConnectionSet, _ sent: () -> Void) throws(DialFailure) {
        do throws(BrokerLink.Failure) {
            let options = connections.export(dialer.address).options.map { OptionValue($0.name, $0.value) }
            let request = RecoverRequest(id: order.id, generation: order.generation, options: options)
            var link = try BrokerLink(arguments.broker ?? BrokerAPI.socketPath, attention)
            try link.send(.recover(request))
            let deadline = Deadline(seconds: Self.callSeconds)
            while true {
                guard var incoming = try link.receive(deadline) else { throw .noBroker }
                guard
                    case .files(let wanted, _)? = try? AddReply(parameters: incoming.reply.parameters, unknown: .ignore)
                else { return }
                guard let parking = incoming.file.take(), wanted == connections.numbers.count,
                    (try? send(parking.raw, [0], files: connections.numbers)) != nil
                else { throw .broken }
                sent()
            }
        } catch {
            let message =
                switch error {
                case .refused(let error): error.message
                case .noBroker, .givenUp: "no broker takes the new connections"
                case .broken: "what the broker says can not be read"
                }
            throw DialFailure(.refused, message, remedy: "")
        }
    }
}
