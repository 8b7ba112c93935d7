import BrokerInterface
import Glibc
import Numbers
import SystemCalls
import Varlink

/// A client: its credentials from connect(2), and one call at a time, with limits on everything.
final class Connection {
    /// Milliseconds.
    private static let idle = 30_000
    /// The number of replies per turn.
    private static let repliesPerTurn = 16

    let peer: PeerCredentials
    /// The account that its calls count for.
    let account: UInt32
    let standing: Admission.Standing
    private let server: Server
    private let broker: Broker
    private var socket: FileDescriptor?
    private var watch: EventLoop.Watch?
    private var timer: EventLoop.Timer?
    private var calls = CallReader()
    /// Monotonic nanoseconds.
    private var lastActive = monotonicNanoseconds()
    private(set) var backlog = ReplyBacklog()
    private var operation: (any ClientOperation)?
    /// The remaining replies to the current call.
    private var stream: (any ReplySource)?
    /// One of them can be made now.
    private var hasReplies: Bool { stream?.hasNext == true }
    /// The call is Monitor: the connection counts among the monitors.
    private(set) var isMonitor = false
    /// A call is being answered; the next one waits.
    private var isBusy = false
    /// Data has arrived and waits for its turn.
    private var waitsForTurn = false
    private var hasReadStats = false

    init(
        _ socket: consuming FileDescriptor, peer: PeerCredentials, account: UInt32, standing: Admission.Standing,
        server: Server
    ) {
        self.peer = peer
        self.account = account
        self.standing = standing
        self.server = server
        broker = server.broker
        self.socket = consume socket
    }

    /// nil after `close`.
    var descriptor: Int32? { socket?.raw }

    func begin() throws(SystemError) {
        guard let fd = socket?.raw else { return }
        watch = try broker.loop.watch(fd, .readable) { [unowned self] ready in handle(ready) }
        restartTimer()
    }

    /// Ends the connection. Data that the client left unread may hold files, so an undertaker closes the socket.
    func close() {
        broker.loop.cancel(timer)
        timer = nil
        if let watch { broker.loop.unwatch(watch) }
        watch = nil
        guard let socket = socket.take() else { return }
        broker.undertaker.letGo(socket, owner: peer.uid, isStranger: standing == .stranger)
        server.forget(self)
        if let monitor = stream as? Monitor { broker.monitors.remove(monitor) }
        stream = nil
        let ended = operation
        operation = nil
        ended?.clientGone()
    }

    // MARK: Making room

    var candidate: Admission.Candidate<Connection> {
        Admission.Candidate(
            key: self, account: account, standing: standing, lastActive: lastActive, isBusy: isBusy || waitsForTurn)
    }

    /// The socket has no unread data.
    var isQuiet: Bool {
        guard let fd = socket?.raw else { return false }
        var socket = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        return poll(&socket, 1, 0) == 0
    }

    /// Closes the connection in favour of another one. A client that is about to call reads why.
    func makeRoom() {
        let error = InterfaceError.limitReached(
            message: "the connection was idle, and others needed its place", remedy: "connect again",
            limit: "connections", value: Int64(Admission.most(standing)))
        if backlog.isEmpty, let fd = socket?.raw { _ = try? SystemCalls.send(fd, error.reply.message, wait: false) }
        refuse("it was idle, and others needed its place")
    }

    // MARK: Bytes in

    private func handle(_ ready: Poller.Interest) {
        if ready.contains(.writable) {
            flush()
            if endsWithDevices { return close() }
            if hasReplies, !waitsForTurn { waitForTurn() }
        }
        if isBusy {
            // The connection is not read while busy, but its end is noticed.
            if !ready.isDisjoint(with: .hangUp) { close() }
        } else if !waitsForTurn, !ready.isDisjoint(with: [.readable, .hangUp]) {
            waitForTurn()
        }
    }

    private func waitForTurn() {
        waitsForTurn = true
        updateInterest()
        restartTimer()
        let party: Turns.Party =
            switch standing {
            case .root: .root
            case .permitted: .account(account)
            case .stranger: .strangers
            }
        broker.loop.inTurn(of: party, account) { [weak self] in self?.takeTurn() }
    }

    /// Reads once and answers at most one call, or continues the replies to one.
    private func takeTurn() {
        waitsForTurn = false
        if hasReplies { return streamOn() }
        guard let fd = socket?.raw, !isBusy else { return }
        switch calls.receive(fd) {
        case .goOn: break
        case .closed: close()
        case .refused(let why): refuse(why)
        }
        lastActive = monotonicNanoseconds()
        if let message = calls.take() { handle(message) }
        goOn()
    }

    /// A pipelined call waits for the next turn.
    private func goOn() {
        guard socket != nil, !isBusy, !waitsForTurn else { return }
        if calls.hasMessage() { return waitForTurn() }
        updateInterest()
        restartTimer()
    }

    private func refuse(_ why: String) {
        Log.client(
            .refusal, peer.uid, .notice, "connection-closed",
            [("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("why", why)])
        close()
    }

    private func restartTimer() {
        broker.loop.cancel(timer)
        timer = nil
        if hasReplies || stream != nil && !backlog.isEmpty, socket != nil {
            timer = broker.loop.after(milliseconds: Connection.idle) { [unowned self] in
                refuse("it does not read its replies")
            }
        }
        if isBusy || waitsForTurn || socket == nil { return }
        guard let left = calls.millisecondsLeft() else {
            timer = broker.loop.after(milliseconds: Connection.idle) { [unowned self] in close() }
            return
        }
        timer = broker.loop.after(milliseconds: left) { [unowned self] in
            refuse("half a message for \(CallReader.deadline / 1000) s")
        }
    }

    // MARK: Calls

    private func handle(_ message: [UInt8]) {
        let call: Call
        do { call = try Call(message: message) } catch { return refuse("\(error)") }
        // A oneway call gets no reply, whatever it is.
        let wantsReply = !call.oneway
        do throws(InterfaceError) {
            let request = try BrokerCall(call)
            switch request {
            case .add(let request):
                begin { [self] answer in
                    let isWanted = { [weak self] in self?.clientIsThere ?? false }
                    return broker.add(request, peer: peer, isWanted: isWanted, answer: answer)
                }
            case .recover(let request): begin { [self] answer in broker.recover(request, peer: peer, answer: answer) }
            case .upgrade(let request):
                setBusy(true)
                broker.upgrade(request, peer: peer) { [weak self] in self?.finish($0.map(\.json), wantsReply) }
            case .resize(let request):
                setBusy(true)
                broker.resize(request, peer: peer) { [weak self] in self?.finish($0.map(\.json), wantsReply) }
            case .delete(let request):
                setBusy(true)
                broker.delete(request, peer: peer) { [weak self] in self?.finish($0?.reply ?? Reply(), wantsReply) }
            case .list(let request): try begin(broker.listing(request, peer: peer), call.more, wantsReply)
            case .stats(let request):
                let replies = try broker.counting(request, peer: peer)
                if replies.hasDevices { noteStats() }
                try begin(replies, call.more, wantsReply)
            case .monitor(let request): if wantsReply { try begin(request) }
            case .info: send(Reply(parameters: broker.info(for: peer).json), wantsReply)
            case .serviceInfo: send(Reply(parameters: ServiceInfoReply(version: UBDVersion.text).json), wantsReply)
            case .interfaceDescription(let interface):
                let text = try BrokerAPI.description(of: interface)
                send(Reply(parameters: InterfaceDescriptionReply(description: text).json), wantsReply)
            }
        } catch {
            send(error.reply, wantsReply)
        }
    }

    /// Logged once per connection, since monitoring asks every second.
    private func noteStats() {
        if hasReadStats { return }
        hasReadStats = true
        Log.client(
            .request, peer.uid, .info, "stats",
            [
                ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("result", "allowed"),
                ("rule", peer.uid == 0 ? "root" : "owner"),
            ])
    }

    /// Starts a call that may ask the client for files.
    private func begin(_ start: (@escaping (ClientAnswer) -> Void) -> (any ClientOperation)?) {
        setBusy(true)
        operation = start { [weak self] answer in
            guard let self else {
                if case .files(_, let parking) = answer { Glibc.close(parking) }
                return
            }
            switch answer {
            case .files(let count, let parking):
                offer(AddReply.files(count: count, parking: 0).reply, FileDescriptor(owning: parking))
            case .added(let device, let notices):
                operation = nil
                finish(AddReply.added(device, notices: notices).reply, true)
            case .failed(let error):
                operation = nil
                finish(error.reply, true)
            }
        }
        // It may have ended, or lost its client, before `start` returned.
        if !isBusy { operation = nil }
        if socket == nil {
            let ended = operation
            operation = nil
            ended?.clientGone()
        }
    }

    private func begin(_ replies: ReplyStream, _ more: Bool, _ wantsReply: Bool) throws(InterfaceError) {
        var replies = replies
        guard more else { return send(try replies.whole(limit: ReplyBacklog.longest), wantsReply) }
        stream = replies
        setBusy(true)
        streamOn()
    }

    /// Sends as many replies as fit. A client that does not read them for a while loses its connection.
    private func streamOn() {
        for _ in 0..<Connection.repliesPerTurn where !backlog.isFull {
            guard let reply = stream?.next() else { break }
            guard reply.continues else {
                stream = nil
                return finish(reply, true)
            }
            send(reply, true)
        }
        if endsWithDevices { return close() }
        updateInterest()
        // A call of Monitor has nothing to tell for hours.
        restartTimer()
    }

    /// It is a keeper's whose devices are gone, and everything is sent. It must end, since it has left the limits of connections.
    private var endsWithDevices: Bool { backlog.isEmpty && (stream as? Monitor)?.isOver == true }

    /// Tells what becomes of devices, until the connection ends.
    private func begin(_ request: MonitorRequest) throws(InterfaceError) {
        stream = try broker.monitor(request, peer: peer, standing: standing) { [weak self] in
            guard let self, !waitsForTurn, !backlog.isFull else { return }
            waitForTurn()
        }
        server.release(self)
        isMonitor = true
        setBusy(true)
        streamOn()
    }

    /// Ends a call that took more than one event.
    private func finish(_ reply: Reply, _ wantsReply: Bool) {
        send(reply, wantsReply)
        setBusy(false)
        lastActive = monotonicNanoseconds()
        // A pipelined call starts from the loop, not inside the operation that ends.
        broker.loop.later { [weak self] in self?.goOn() }
    }

    private func finish(_ result: Result<JSON, InterfaceError>, _ wantsReply: Bool) {
        do { try finish(Reply(parameters: result.get()), wantsReply) } catch { finish(error.reply, wantsReply) }
    }

    private func setBusy(_ busy: Bool) {
        isBusy = busy
        updateInterest()
        restartTimer()
    }

    /// Asks the kernel, since the event loop may not have noticed the client's end yet.
    private var clientIsThere: Bool {
        guard let fd = socket?.raw else { return false }
        var socket = pollfd(fd: fd, events: 0, revents: 0)
        return poll(&socket, 1, 0) == 0
    }

    // MARK: Bytes out

    private func send(_ reply: Reply, _ wantsReply: Bool) {
        if !wantsReply { return }
        backlog.append(reply)
        flush()
    }

    /// Sends a reply that carries a file. If it cannot be sent at once, the connection is closed.
    private func offer(_ reply: Reply, _ file: consuming FileDescriptor) {
        guard let fd = socket?.raw, backlog.isEmpty else { return refuse("it does not read its replies") }
        let bytes = reply.message
        guard let sent = try? SystemCalls.send(fd, bytes, files: [file.raw]), sent == bytes.count else {
            return refuse("it does not read its replies")
        }
    }

    private func flush() {
        guard let fd = socket?.raw else { return }
        do {
            if try backlog.send(to: fd), stream != nil { restartTimer() }
        } catch {
            return close()
        }
        if backlog.isTooLong { return refuse("it does not read its replies") }
        updateInterest()
    }

    private func updateInterest() {
        guard let watch else { return }
        var interest: Poller.Interest = []
        if !isBusy, !waitsForTurn, backlog.isEmpty { interest.insert(.readable) }
        if !backlog.isEmpty || hasReplies && !waitsForTurn { interest.insert(.writable) }
        broker.loop.change(watch, interest)
    }
}
