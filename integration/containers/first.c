/*
 * A pod's first process: it connects before it does anything else, and tells who answered. It stands in for the
 * sidecar as well, with a listener on each of Envoy's ports, so that a pod needs nothing but this.
 *
 *   first ADDRESS PORT        connect, ask by HTTP, print the answer, then serve until SIGTERM
 *   first ADDRESS PORT once   the same, and end after the answer
 *
 * Whom a listener hears from it tells "captured PORT ORIGINAL-DESTINATION". The process' name becomes the first word
 * of what it was answered, or "refused", for those who can't read its output.
 */
#include <arpa/inet.h>
#include <linux/netfilter_ipv4.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static const int PORTS[] = {15001, 15006};
enum { LISTENERS = 2, ROOM = 512 };

static void end(int number)
{
	(void)number;
	_exit(0);
}

/* A listener, or -1 where another process of the pod has the port. */
static int listening(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
	int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(made, (struct sockaddr *)&at, sizeof at) || listen(made, 64)) {
		close(made);
		return -1;
	}
	return made;
}

static void tell(const char *text)
{
	char word[16] = "";

	printf("%s\n", text);
	fflush(stdout);
	sscanf(text, "%15s", word);
	prctl(PR_SET_NAME, word);
}

/* Hear what a client says, and tell it by which port it came and where it meant to go. */
static void answer(int listener, int port)
{
	struct sockaddr_in meant;
	socklen_t size = sizeof meant;
	char said[ROOM], body[ROOM] = "nobody captured this", text[2 * ROOM];
	int peer = accept(listener, NULL, NULL);

	if (peer < 0)
		return;
	if (!getsockopt(peer, SOL_IP, SO_ORIGINAL_DST, &meant, &size))
		snprintf(body, sizeof body, "captured %d %s:%d", port, inet_ntoa(meant.sin_addr), ntohs(meant.sin_port));
	if (read(peer, said, sizeof said) > 0) {
		int length = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
		if (write(peer, text, length) != length)
			fprintf(stderr, "an answer was cut short\n");
	}
	close(peer);
}

int main(int count, char **words)
{
	static const char request[] = "GET / HTTP/1.1\r\nhost: first\r\n\r\n";
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct pollfd waiting[LISTENERS + 1];
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), each;

	if (count < 3 || !inet_aton(words[1], &to.sin_addr))
		return 2;
	to.sin_port = htons(atoi(words[2]));
	for (each = 0; each < LISTENERS; each++)
		waiting[each] = (struct pollfd){listening(PORTS[each]), POLLIN, 0};
	waiting[LISTENERS] = (struct pollfd){client, POLLIN, 0};
	signal(SIGTERM, end);
	if (connect(client, (struct sockaddr *)&to, sizeof to)) {
		tell("refused");
		waiting[LISTENERS].fd = -1;
	} else if (write(client, request, sizeof request - 1) < 0) {
		return 1;
	}
	for (;;) {
		if (count > 3 && waiting[LISTENERS].fd < 0)
			return 0;
		if (poll(waiting, LISTENERS + 1, -1) < 0)
			return 1;
		for (each = 0; each < LISTENERS; each++)
			if (waiting[each].revents)
				answer(waiting[each].fd, PORTS[each]);
		if (waiting[LISTENERS].revents) {
			char text[ROOM] = "";
			ssize_t length = read(client, text, sizeof text - 1);
			char *body = strstr(text, "\r\n\r\n");

			tell(length > 0 && body ? body + 4 : "cut off");
			close(client);
			waiting[LISTENERS].fd = -1;
		}
	}
}
