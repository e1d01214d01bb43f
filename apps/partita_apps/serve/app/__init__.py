"""What the server's own page is answered: chats, and replies that go on whether somebody looks or not."""
